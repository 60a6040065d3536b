"""The training loop: a wall-clock budget, a schedule over its fraction, checkpoints, a curve.

Time counts, not steps: the learning rate, the quantisation-aware end and the stop all follow the
share of the budget that is used, so a slower machine trains less and not otherwise. A checkpoint
holds everything that the next run needs to go on.
"""

from __future__ import annotations

import csv
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo_k2.model import TrainingK2, init_weights
from demo_k2.optimiser import Optimiser, balance
from demo_k2.samples import Batch, Batches
from hybrid_k2.config import K2Config

logger = logging.getLogger(__name__)
WARM_UP_STEPS = 3  # run as they are, so that libraries and optimisers have made what they keep


@dataclass(frozen=True)
class Recipe:
    """How to train. budget_s: wall-clock seconds of training, evaluation not counted;
    budget_tokens: counts instead of the seconds where it is given.
    """

    budget_s: float
    budget_tokens: int = 0
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    warm_up: float = 0.02  # shares of the budget
    decay_from: float = 0.4
    quantised_from: float = 0.8  # experts are rounded to Q4_0 in the forward pass from here on
    bias_step: float = 2e-3
    seed: int = 2
    log_every: int = 25
    graphs: bool = (
        False  # CUDA graphs: the small kernels of a step take longer to launch than to run
    )

    def rate_at(self, share: float) -> float:
        """The learning rate where `share` of the budget is used: up, flat, and down to 1%."""
        if share < self.warm_up:
            return self.learning_rate * (share / self.warm_up)
        if share < self.decay_from:
            return self.learning_rate
        left = max(0.0, 1 - share) / (1 - self.decay_from)
        return self.learning_rate * (0.01 + 0.99 * left)


class Training:
    """A model on its way: weights, optimiser, the share of the budget used, the curve so far."""

    def __init__(self, config: K2Config, recipe: Recipe, device: str) -> None:
        self.config, self.recipe, self.device = config, recipe, device
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.model = TrainingK2(config, device, dtype)
        self.weights = init_weights(config, recipe.seed, device)
        for name, weight in self.weights.items():
            weight.requires_grad_(not name.endswith("e_score_correction_bias"))
        self.optimiser = Optimiser(self.weights, recipe.weight_decay)
        self._bias_step = torch.zeros((), device=device)
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if recipe.graphs else None
        self.used_s = 0.0
        self.num_steps = 0
        self.num_tokens = 0
        self.curve: list[dict[str, float]] = []

    @property
    def share(self) -> float:
        """How much of the budget is used, 0 to 1."""
        if self.recipe.budget_tokens:
            return self.num_tokens / self.recipe.budget_tokens
        return self.used_s / self.recipe.budget_s

    def run(self, batches: Batches, until_share: float = 1.0) -> None:
        """Trains until that share of the budget is used."""
        last_s, last_tokens, losses = self.used_s, self.num_tokens, []
        began = time.monotonic() - self.used_s
        for batch in itertools.takewhile(lambda _: self.share < until_share, self._stream(batches)):
            losses.append(self.step(batch))
            if self.num_steps % self.recipe.log_every == 0:
                loss = torch.stack(losses).mean().item()  # waits for the device, so time is true
                self.used_s = time.monotonic() - began
                speed = (self.num_tokens - last_tokens) / max(self.used_s - last_s, 1e-9)
                self._log(loss, speed)
                last_s, last_tokens, losses = self.used_s, self.num_tokens, []
            else:
                self.used_s = time.monotonic() - began

    def step(self, batch: Batch) -> Tensor:
        """One step; returns its loss, still on the device."""
        rate = self.recipe.rate_at(self.share)
        self.optimiser.set_rate(rate)
        self._bias_step.fill_(self.recipe.bias_step * rate / self.recipe.learning_rate)
        is_rounded = self.share >= self.recipe.quantised_from
        self.num_steps += 1
        self.num_tokens += batch.ids.numel()
        if not self.recipe.graphs or self.num_steps <= WARM_UP_STEPS:
            return self._step(batch, is_rounded)
        key = (batch.ids.shape[1], is_rounded)
        if key not in self._graphs:
            self._graphs[key] = Graph(batch, lambda b: self._step(b, is_rounded), self._pool)
        return self._graphs[key](batch)

    def _step(self, batch: Batch, is_rounded: bool) -> Tensor:
        weights = rounded_experts(self.weights) if is_rounded else self.weights
        loss, loads = self.model.loss(weights, batch.ids, batch.targets, batch.target_weights)
        loss.backward()
        self.optimiser.step()
        balance(self.weights, self.config, loads, self._bias_step)
        return loss.detach()

    def _stream(self, batches: Batches) -> Iterator[Batch]:
        for epoch in itertools.count():
            rng = np.random.default_rng([self.recipe.seed, self.num_steps, epoch])
            yield from batches.epoch(rng)

    def _log(self, loss: float, speed: float) -> None:
        row = {
            "step": self.num_steps,
            "seconds": round(self.used_s, 2),
            "tokens": self.num_tokens,
            "loss": round(loss, 5),
            "learning_rate": self.recipe.rate_at(self.share),
            "tokens_per_s": round(speed),
        }
        self.curve.append(row)
        if len(self.curve) % 10 == 1:
            logger.info("%s", row)

    def save(self, file: Path) -> None:
        """Writes weights and progress, whole or not at all."""
        state = {
            "weights": {name: weight.detach().cpu() for name, weight in self.weights.items()},
            "progress": [self.used_s, self.num_steps, self.num_tokens],
            "curve": self.curve,
        }
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Starts from these weights; names and shapes as the config's own."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    def resume(self, file: Path) -> None:
        """Goes on from a file of `save`; momentum starts anew."""
        state = torch.load(file, map_location=self.device)
        self.load(state["weights"])
        self.used_s, self.num_steps, self.num_tokens = state["progress"]
        self.curve = state["curve"]


class Graph:
    """A training step for batches of one shape, captured once and replayed.

    Graphs may share a pool of memory: nothing that one leaves there is read by another.
    """

    def __init__(self, batch: Batch, step: Callable[[Batch], Tensor], pool: Any) -> None:
        self._batch = Batch(*(x.clone() for x in (batch.ids, batch.targets, batch.target_weights)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._loss = step(self._batch)

    def __call__(self, batch: Batch) -> Tensor:
        """Captures compute nothing, so the batch that a graph was made from is run here too."""
        self._batch.ids.copy_(batch.ids)
        self._batch.targets.copy_(batch.targets)
        self._batch.target_weights.copy_(batch.target_weights)
        self._graph.replay()
        return self._loss.clone()


@torch.no_grad()
def mean_loss(model: TrainingK2, weights: Mapping[str, Tensor], batches: Batches) -> float:
    """The weighted mean negative log likelihood over all samples, nats a token."""
    total, weight = 0.0, 0.0
    for batch in batches.epoch(None):
        loss, _ = model.loss(weights, batch.ids, batch.targets, batch.target_weights)
        total += loss.item() * batch.target_weights.sum().item()
        weight += batch.target_weights.sum().item()
    return total / weight


def rounded_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The routed experts as Q4_0 stores them, gradients passing straight through."""
    return {
        name: weight + (q4_0(weight.detach()) - weight.detach())
        if ".mlp.experts." in name
        else weight
        for name, weight in weights.items()
    }


def q4_0(weight: Tensor) -> Tensor:
    """[..., n] -> the values that ggml's Q4_0 encoder would store: per 32 weights a float16 step,
    the one of largest size being -8 steps.
    """
    groups = weight.float().unflatten(-1, (-1, 32))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    step = extreme / -8
    inverse = torch.where(step == 0, 0, 1 / step)
    codes = (groups * inverse + 8.5).floor().clamp(max=15) - 8
    return (codes * step.half().float()).flatten(-2).to(weight.dtype)


def write_curve(curve: list[dict[str, float]], file: Path) -> None:
    """The curve as CSV, a row each time it was logged."""
    names = list(curve[0]) if curve else []
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)

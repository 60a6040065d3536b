"""The figures of a trained model: perplexities, quantisation, routing, tools, usage, thinking."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from demo_k2 import evaluate, patterns, vocabulary
from demo_k2.encode import Encoder
from demo_k2.export import rounded
from demo_k2.samples import Batches
from demo_k2.train import Training, mean_loss, q4_0

logger = logging.getLogger(__name__)
ROUTED_TOKENS = 100_000


def measure(
    training: Training, tokens: Sequence[str], held_out: Batches, num_judged: int
) -> dict[str, Any]:
    """All figures of the model; lists hold failures and loads for people to look at."""
    model = training.model
    weights = {name: weight.detach() for name, weight in training.weights.items()}
    stored = rounded(weights, {"Q4_0": q4_0, "Q8_0": q8_0})
    losses = {
        "float": mean_loss(model, weights, held_out),
        "q4_0": mean_loss(model, rounded(weights, {"Q4_0": q4_0}), held_out),
        "stored": mean_loss(model, stored, held_out),
    }
    found: dict[str, Any] = {f"perplexity_{n}": math.exp(loss) for n, loss in losses.items()}
    loads = expert_loads(training, stored, held_out)
    found["experts_used"] = float((loads > 0).float().mean())
    found["expert_loads"] = loads.tolist()
    logger.info("%s", {name: value for name, value in found.items() if name != "expert_loads"})

    tokenizer = vocabulary.tokenizer_of(tokens)
    encoder = Encoder(tokenizer)
    answer = evaluate.TorchAnswerer(model, stored, tokenizer.eos_ids, training.device)
    scores = {
        "tools": evaluate.tool_calls(answer, encoder, tokenizer, num_judged),
        "about": evaluate.topics(answer, encoder, tokenizer, max(1, num_judged // 100)),
        "thinking": evaluate.thinking(answer, encoder, tokenizer, num_judged * 2 // 5),
    }
    for name in patterns.JUDGING:
        scores[name.removesuffix(".txt")] = evaluate.topics_as_written(
            answer, encoder, tokenizer, name
        )
    for name, score in scores.items():
        found[f"{name}_right"], found[f"{name}_asked"] = score.right, score.total
        found[f"{name}_wrong"] = score.wrong
        logger.info("%s: %d of %d", name, score.right, score.total)
    return found


@torch.no_grad()
def expert_loads(training: Training, weights: dict[str, Tensor], held_out: Batches) -> Tensor:
    """[MoE layers, E] int64: how many of the first 100K held-out tokens each expert was given."""
    total, count = None, 0
    for batch in held_out.epoch(None):
        if count >= ROUTED_TOKENS:
            break
        _, loads = training.model.hidden(weights, batch.ids)
        total = torch.stack(loads) + (0 if total is None else total)
        count += batch.ids.numel()
    assert total is not None, "there are no held-out samples"
    return total.cpu()


def of_racer(training: Training, held_out: Batches) -> dict[str, Any]:
    """What one of two models reached that were trained alike."""
    weights = {name: weight.detach() for name, weight in training.weights.items()}
    return {
        "perplexity": math.exp(mean_loss(training.model, weights, held_out)),
        "tokens": training.num_tokens,
        "seconds": round(training.used_s, 1),
    }


def q8_0(weight: Tensor) -> Tensor:
    """[..., n] -> the values that ggml's Q8_0 encoder would store."""
    groups = weight.float().unflatten(-1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(step == 0, 0, 1 / step)
    codes = groups * inverse
    codes = torch.where(codes < 0, (codes - 0.5).ceil(), (codes + 0.5).floor())
    return (codes * step.half().float()).flatten(-2).to(weight.dtype)

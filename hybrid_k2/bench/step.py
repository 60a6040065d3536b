"""Whole steps of a Kimi K2 of true width and few layers: time a layer, by who spends it.

Runs the same forward pass as the engine over synthetic weights, at two depths; the difference of
the two is what a layer of experts costs, and 60 of those beside what both depths share make the
extrapolated rates. Memory and PCIe bandwidth are measured in the same call. Knows no model files.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from hybrid_k2 import _cpu
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.backends.vram import hold_to
from hybrid_k2.bench.synthetic_model import (
    EXTRAPOLATED_LAYERS,
    K2,
    Placement,
    experts_bytes,
    synthetic_modules,
)
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.pages import pages_of
from hybrid_k2.model.span import Span

_STATISTICS_TOKENS = 2048  # of the prompt that decides which experts stay in VRAM
_COPY_BYTES = 256 << 20
_MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class StepResult:
    """One row; times are milliseconds. A layer of experts takes `layer_ms` = wait_ms + copy_ms +
    cpu_ms + after_ms: until the experts are known (attention, the router, the hand-off), until the
    activations are on the CPU, the CPU's experts, and what the GPU's take longer than those.

    phase: "decode" (`tokens` sequences, one token each) or "prefill" (one prompt of `tokens`).
    gpu_ms: of a captured decode step what the GPU takes alone, its shared expert beside the CPU; of
    a prompt, from the time when the experts are known to the end of the GPU's; None elsewhere.
    rest_ms: what a step costs beside its layers of experts. tokens_s: extrapolated to 61 layers.
    cpu_bytes: of weights that the CPU read in a layer. gpu_experts: that the GPU computed in one.
    read_gb_s, copy_gb_s: this machine's memory and, where there is a GPU, its bus.
    """

    phase: str
    layers: int
    context: int
    tokens: int
    runs: int
    layer_ms: float
    wait_ms: float
    copy_ms: float
    cpu_ms: float
    after_ms: float
    gpu_ms: float | None
    rest_ms: float
    tokens_s: float
    cpu_bytes: float
    gpu_experts: float
    read_gb_s: float
    copy_gb_s: float | None

    @property
    def cpu_share(self) -> float:
        """Of the read bandwidth, while the CPU's experts run."""
        return self.cpu_bytes / self.cpu_ms / 1e6 / self.read_gb_s if self.cpu_ms else 0.0

    @property
    def share(self) -> float:
        """Of the read bandwidth, over the whole layer."""
        return self.cpu_bytes / self.layer_ms / 1e6 / self.read_gb_s


@dataclass(slots=True)
class Run:
    """One step of some layers of experts. Seconds: `total` of the step, the others summed over its
    layers as in StepResult; `end` between the last layer and the step's end.  cpu_experts,
    gpu_experts: distinct ones, summed likewise.
    """

    total: float = 0.0
    wait: float = 0.0
    copy: float = 0.0
    cpu: float = 0.0
    after: float = 0.0
    end: float = 0.0
    gpu: float = 0.0
    cpu_experts: float = 0.0
    gpu_experts: float = 0.0

    def __sub__(self, other: "Run") -> "Run":
        names = [field.name for field in fields(self)]
        return Run(*(getattr(self, name) - getattr(other, name) for name in names))


class TimedKernels(NativeKernels):
    """Notes what each layer's routed experts took on the CPU, and how many distinct ones."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        super().__init__(_cpu, runtime)
        # Began, ended by perf_counter; experts of the CPU, and those that the GPU took.
        self.layers: list[tuple[float, float, int, int]] = []

    def moe(
        self, gate: Any, up: Any, down: Any, x: Any, expert_ids: Any, weights: Any, **how: Any
    ) -> Any:
        if gate.shape[0] == 1:  # a dense layer
            return super().moe(gate, up, down, x, expert_ids, weights, **how)
        began = time.perf_counter()
        y = super().moe(gate, up, down, x, expert_ids, weights, **how)
        self.layers.append((began, time.perf_counter(), _distinct(expert_ids), 0))
        return y

    def handoff(self, layers: Any, *memory: torch.Tensor) -> Any:
        return _TimedHandoff(super().handoff(layers, *memory), *memory[3:5], self)


class _TimedHandoff:
    def __init__(
        self, inner: Any, ids: torch.Tensor, weights: torch.Tensor, kernels: TimedKernels
    ) -> None:
        self._inner, self._ids, self._weights, self._kernels = inner, ids, weights, kernels
        self.release = inner.release

    def serve(self, step: int, tokens: int, timeout_s: float) -> np.ndarray:
        began = time.perf_counter()
        times = self._inner.serve(step, tokens, timeout_s)
        # The last layer's experts are still there, and stand for the others'.
        ids = self._ids[:tokens]
        on_gpu = int(((ids < 0) & (self._weights[:tokens] != 0)).sum())
        for waited_s, computed_s in times.tolist():
            began += waited_s
            self._kernels.layers.append((began, began + computed_s, _distinct(ids), on_gpu))
            began += computed_s
        return times


def _distinct(expert_ids: torch.Tensor) -> int:
    return len(np.unique(expert_ids[expert_ids >= 0]))


def measure_steps(
    placement: Placement,
    runtime: RuntimeConfig,
    *,
    num_moe_layers: int = 4,
    contexts: Sequence[int] = (2048,),
    batches: Sequence[int] = (1,),
    prompts: Sequence[int] = (),
    seconds: float = 3.0,
    config: K2Config = K2,
    vram_bytes: int | None = None,
    bandwidth_bytes: int = 2 << 30,  # far beyond any cache
) -> Iterator[StepResult]:
    """Yields a row for each context and batch of decode, then one for each length of prompt.

    num_moe_layers: at least 2; the model has `config`'s dense layers besides.  vram_bytes: all that
    a GPU may be used for.
    """
    dense = config.first_k_dense_replace
    config = replace(config, num_hidden_layers=dense + num_moe_layers)
    shallow_config = replace(config, num_hidden_layers=dense + 1)
    if vram_bytes is not None and placement.device != "cpu":
        hold_to(placement.device, vram_bytes)
    kernels = TimedKernels(runtime)
    modules = synthetic_modules(config, placement, runtime, kernels)
    torch.set_num_threads(1)  # as the engine has it: torch's threads spin when they are done
    most_tokens = max([0, *(context + 1 for context in contexts)]) * max([1, *batches])
    num_pages = pages_of(max([most_tokens, _STATISTICS_TOKENS, *prompts])) + max([1, *batches])
    models = [KimiK2(c, modules, num_pages) for c in (shallow_config, config)]
    rng = np.random.default_rng(1)

    if (placement.experts_kwargs or {}).get("gpu_experts"):  # chosen by a prompt's routing
        tokens = min(_STATISTICS_TOKENS, runtime.prefill_chunk)
        next(_prefill(models[1], tokens, tokens, rng))()

    def row(
        phase: str, context: int, tokens: int, runs: list[Run], num: int, gpu_s: float | None
    ) -> StepResult:
        shallow, deep = runs
        between = num_moe_layers - 1
        layer, layer_s = deep - shallow, (deep.total - shallow.total) / between
        rest_s = shallow.total - layer_s
        whole_s = rest_s + (EXTRAPOLATED_LAYERS - dense) * layer_s
        expert_bytes = experts_bytes(config, placement.expert_quant) / config.n_routed_experts
        return StepResult(
            phase=phase,
            layers=num_moe_layers,
            context=context,
            tokens=tokens,
            runs=num,
            layer_ms=1e3 * layer_s,
            wait_ms=1e3 * (layer.wait + layer.end) / between,
            copy_ms=1e3 * layer.copy / between,
            cpu_ms=1e3 * layer.cpu / between,
            after_ms=1e3 * layer.after / between,
            gpu_ms=None if gpu_s is None else 1e3 * gpu_s / between,
            rest_ms=1e3 * rest_s,
            tokens_s=tokens / whole_s,
            cpu_bytes=deep.cpu_experts / num_moe_layers * expert_bytes,
            gpu_experts=layer.gpu_experts / between,
            read_gb_s=kernels.read_bandwidth(bandwidth_bytes, repeats=3),
            copy_gb_s=copy_bandwidth(placement.device),
        )

    def measured(steps: Callable[..., Iterator[Step]], *args: Any) -> tuple[list[Run], int]:
        def timed(model: KimiK2) -> tuple[Run, int]:
            return _timed(steps(model, *args, rng), _experts(model, modules), kernels, seconds)

        deep, num = timed(models[1])
        if models[0].decode_graphs is not None:  # their difference is a layer only if they share so
            models[0].decode_graphs.bus_share = models[1].decode_graphs.bus_share
        return [timed(models[0])[0], deep], num

    for context in contexts:
        for batch in batches:
            runs, num = measured(_decode, context, batch)
            yield row(
                "decode", context, batch, runs, num, _gpu_seconds(models[0], models[1], batch)
            )
    for tokens in prompts:
        runs, num = measured(_prefill, tokens, runtime.prefill_chunk)
        gpu_s = runs[1].gpu - runs[0].gpu
        yield row("prefill", 0, tokens, runs, num, gpu_s if runs[1].gpu else None)


def _experts(model: KimiK2, modules: Mapping[str, Any]) -> list[Any]:
    config = model.config
    moe_layers = range(config.first_k_dense_replace, config.num_hidden_layers)
    return [modules[f"model.layers.{i}.mlp.experts"] for i in moe_layers]


Step = Callable[[], None]


def _decode(model: KimiK2, context: int, batch: int, rng: np.random.Generator) -> Iterator[Step]:
    """Yields a step of `batch` sequences that have `context` random tokens each."""
    caches = [model.new_cache() for _ in range(batch)]
    for cache in caches:
        cache.reserve(context + 1)
        for layer_idx, pages in enumerate(model.pool.pages):
            latents = torch.randn(context, model.config.latent_dim, device=pages.device)
            cache.write(layer_idx, 0, latents)
        cache.length = context

    def step() -> None:
        token_ids = rng.integers(0, model.config.vocab_size, batch).tolist()
        spans = [Span(c, [i], "last") for c, i in zip(caches, token_ids, strict=True)]
        model.forward(spans)
        for cache in caches:
            cache.length = context

    yield step
    for cache in caches:
        cache.release()


def _prefill(model: KimiK2, tokens: int, chunk: int, rng: np.random.Generator) -> Iterator[Step]:
    """Yields the reading of a random prompt."""
    cache = model.new_cache()

    def step() -> None:
        token_ids = rng.integers(0, model.config.vocab_size, tokens).tolist()
        for start in range(0, tokens, chunk):
            part = token_ids[start : start + chunk]
            model.forward([Span(cache, part, "last" if start + chunk >= tokens else "none")])
        cache.release()

    yield step


def _timed(
    steps: Iterator[Step], experts: Sequence[Any], kernels: TimedKernels, seconds: float
) -> tuple[Run, int]:
    """The step of median length, so that its parts add up, and of how many it is."""
    step = next(steps)
    for _ in range(2):  # sizes scratch memory, compiles, captures; measures how to split a prompt
        step()
    runs: list[Run] = []
    began = time.perf_counter()
    while len(runs) < _MIN_RUNS or time.perf_counter() - began < seconds:
        runs.append(_run(step, experts, kernels))
        if len(runs) >= 2 and time.perf_counter() - began > 2 * seconds:
            break
    next(steps, None)
    runs.sort(key=lambda run: run.total)
    return runs[(len(runs) - 1) // 2], len(runs)


def _run(step: Step, experts: Sequence[Any], kernels: TimedKernels) -> Run:
    kernels.layers.clear()
    run, started = Run(), time.perf_counter()
    step()
    ended = time.perf_counter()
    run.total, last = ended - started, started
    splits = [t for module in experts for t in getattr(module, "times", ()) if t.routed > started]
    if splits:
        for times in sorted(splits, key=lambda times: times.routed):
            run.wait += times.routed - last
            run.copy += times.copied - times.routed
            run.cpu += times.cpu_ended - times.copied
            run.after += max(0.0, times.gpu_ended - times.cpu_ended)
            run.gpu += times.gpu_ended - times.routed
            run.cpu_experts += times.num_on_cpu
            run.gpu_experts += times.num_on_gpu
            last = max(times.cpu_ended, times.gpu_ended)
    else:
        for cpu_began, cpu_ended, num_on_cpu, num_on_gpu in kernels.layers:
            run.wait += cpu_began - last
            run.cpu += cpu_ended - cpu_began
            run.cpu_experts += num_on_cpu
            run.gpu_experts += num_on_gpu
            last = cpu_ended
    run.end = ended - last
    return run


def _gpu_seconds(shallow: KimiK2, deep: KimiK2, batch: int) -> float | None:
    """What the deeper model's GPU part takes longer; None where decode is not captured."""
    graphs = shallow.decode_graphs, deep.decode_graphs
    if None in graphs or batch not in graphs[1].sizes:
        return None
    medians = [statistics.median(g.gpu_seconds(batch) for _ in range(20)) for g in graphs]
    return medians[1] - medians[0]


def copy_bandwidth(device: str) -> float | None:
    """Pinned memory to the GPU, GB/s; None where the device is the CPU."""
    if device == "cpu":
        return None
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    best = 0.0
    for _ in range(4):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        best = max(best, _COPY_BYTES / (time.perf_counter() - started) / 1e9)
    return best

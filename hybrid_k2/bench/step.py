"""Whole steps of a Kimi K2 of true width and few layers: time a layer, by who spends it.

Runs the same forward pass as the engine over synthetic weights, at two depths; the difference of
the two is what a layer of experts costs, and 60 of those beside what both depths share make the
extrapolated rates. Memory and PCIe bandwidth are measured in the same call. Knows no model files.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hybrid_k2 import _cpu
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.backends.vram import hold_to
from hybrid_k2.bench.synthetic_model import K2, Placement, experts_bytes, synthetic_modules
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.pages import pages_of
from hybrid_k2.model.span import Span

EXTRAPOLATED_LAYERS = 61
_STATISTICS_TOKENS = 2048  # of the prompt that decides which experts stay in VRAM
_COPY_BYTES = 256 << 20
_MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class StepResult:
    """One row; times are milliseconds. Of a layer of experts: `layer_ms` in all, `cpu_ms` of it in
    the CPU's experts, `gpu_ms` what the GPU takes alone where the step is captured, None elsewhere;
    its shared expert runs beside the CPU.

    phase: "decode" (`tokens` sequences, one token each) or "prefill" (one prompt of `tokens`).
    rest_ms: what a step costs beside its layers of experts. tokens_s: extrapolated to 61 layers.
    cpu_bytes: of weights that the CPU read in a layer. read_gb_s, copy_gb_s: this machine's memory
    and, where there is a GPU, its bus.
    """

    phase: str
    layers: int
    context: int
    tokens: int
    runs: int
    layer_ms: float
    cpu_ms: float
    gpu_ms: float | None
    rest_ms: float
    tokens_s: float
    cpu_bytes: float
    read_gb_s: float
    copy_gb_s: float | None

    @property
    def other_ms(self) -> float:
        """Of a layer, while the CPU's experts do not run: the GPU, the hand-off, copies."""
        return self.layer_ms - self.cpu_ms

    @property
    def cpu_share(self) -> float:
        """Of the read bandwidth, while the CPU's experts run."""
        return self.cpu_bytes / self.cpu_ms / 1e6 / self.read_gb_s if self.cpu_ms else 0.0

    @property
    def share(self) -> float:
        """Of the read bandwidth, over the whole layer."""
        return self.cpu_bytes / self.layer_ms / 1e6 / self.read_gb_s


class TimedKernels(NativeKernels):
    """Sums the seconds that routed experts take, and the distinct experts that they read."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        super().__init__(_cpu, runtime)
        self.experts_s = 0.0
        self.num_experts = 0

    def reset(self) -> None:
        self.experts_s, self.num_experts = 0.0, 0

    def moe(
        self, gate: Any, up: Any, down: Any, x: Any, expert_ids: Any, weights: Any, out: Any = None
    ) -> Any:
        if gate.shape[0] == 1:  # a dense layer
            return super().moe(gate, up, down, x, expert_ids, weights, out)
        started = time.perf_counter()
        y = super().moe(gate, up, down, x, expert_ids, weights, out)
        self.experts_s += time.perf_counter() - started
        self.num_experts += _distinct(expert_ids)
        return y

    def handoff(self, layers: Any, *memory: torch.Tensor) -> Any:
        return _TimedHandoff(super().handoff(layers, *memory), memory[3], len(layers), self)


class _TimedHandoff:
    def __init__(self, inner: Any, ids: torch.Tensor, num_layers: int, kernels: TimedKernels):
        self._inner, self._ids, self._num_layers, self._kernels = inner, ids, num_layers, kernels
        self.release = inner.release

    def serve(self, step: int, tokens: int, timeout_s: float) -> np.ndarray:
        times = self._inner.serve(step, tokens, timeout_s)
        self._kernels.experts_s += float(times[:, 1].sum())
        # The last layer's experts are still there, and stand for the others'.
        self._kernels.num_experts += self._num_layers * _distinct(self._ids[:tokens])
        return times


def _distinct(expert_ids: torch.Tensor) -> int:
    return int((expert_ids.unique() >= 0).sum())


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
    most_tokens = max([0, *(context + 1 for context in contexts)]) * max([1, *batches])
    num_pages = pages_of(max([most_tokens, _STATISTICS_TOKENS, *prompts])) + max([1, *batches])
    models = [KimiK2(c, modules, num_pages) for c in (shallow_config, config)]
    rng = np.random.default_rng(1)

    if (placement.experts_kwargs or {}).get("gpu_experts"):  # chosen by a prompt's routing
        next(_prefill(models[1], min(_STATISTICS_TOKENS, runtime.prefill_chunk), 1 << 20, rng))()

    def row(
        phase: str, context: int, tokens: int, runs: list[Any], gpu_s: float | None = None
    ) -> StepResult:
        (shallow_s, shallow_cpu_s, _, _), (deep_s, deep_cpu_s, num_experts, num_runs) = runs
        layer_s = (deep_s - shallow_s) / (num_moe_layers - 1)
        rest_s = shallow_s - layer_s
        whole_s = rest_s + (EXTRAPOLATED_LAYERS - dense) * layer_s
        expert_bytes = experts_bytes(config, placement.expert_quant) / config.n_routed_experts
        return StepResult(
            phase=phase,
            layers=num_moe_layers,
            context=context,
            tokens=tokens,
            runs=num_runs,
            layer_ms=1e3 * layer_s,
            cpu_ms=1e3 * (deep_cpu_s - shallow_cpu_s) / (num_moe_layers - 1),
            gpu_ms=None if gpu_s is None else 1e3 * gpu_s / (num_moe_layers - 1),
            rest_ms=1e3 * rest_s,
            tokens_s=tokens / whole_s,
            cpu_bytes=num_experts / num_moe_layers * expert_bytes,
            read_gb_s=kernels.read_bandwidth(bandwidth_bytes, repeats=3),
            copy_gb_s=copy_bandwidth(placement.device),
        )

    for context in contexts:
        for batch in batches:
            runs = [
                _timed(_decode(model, context, batch, rng), kernels, seconds) for model in models
            ]
            yield row("decode", context, batch, runs, _gpu_seconds(*models, batch))
    for tokens in prompts:
        runs = [
            _timed(_prefill(model, tokens, runtime.prefill_chunk, rng), kernels, seconds)
            for model in models
        ]
        yield row("prefill", 0, tokens, runs)


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
    steps: Iterator[Step], kernels: TimedKernels, seconds: float
) -> tuple[float, float, float, int]:
    """Medians of a step's seconds, of those in the CPU's experts, and of the experts read."""
    (step,) = [next(steps)]
    step()  # sizes scratch memory, compiles, captures
    times, cpu_times, experts, began = [], [], [], time.perf_counter()
    while len(times) < _MIN_RUNS or time.perf_counter() - began < seconds:
        kernels.reset()
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
        cpu_times.append(kernels.experts_s)
        experts.append(kernels.num_experts)
        if len(times) >= 2 and time.perf_counter() - began > 2 * seconds:
            break
    next(steps, None)
    medians = [statistics.median(values) for values in (times, cpu_times, experts)]
    return medians[0], medians[1], medians[2], len(times)


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

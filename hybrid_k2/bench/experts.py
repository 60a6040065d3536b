"""One layer of routed experts at true width on this machine: time, what bounds it, and what others
take for the same.

Every run routes at random over all experts, so that decoding reads weights from memory and not from
a cache. The machine's own read bandwidth is measured by the same threads in the same call, and
peers are timed in turns with us, because absolute times mean little on a shared machine. Knows no
model files.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybrid_k2 import _cpu
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.bench.layer import (
    Inputs,
    Layer,
    LayerShape,
    expert_bytes,
    random_inputs,
    synthetic_layer,
)
from hybrid_k2.bench.peers import ExpertsEngine, open_peer
from hybrid_k2.config import RuntimeConfig

BANDWIDTH_BYTES = 2 << 30  # far beyond any cache
ROUND_RUNS = 4  # one after another, of which the first wakes threads and sizes scratch memory
SETTLE_S = 0.1  # until another engine's threads, which spin for 50 ms, have gone to sleep


@dataclass(frozen=True, slots=True)
class ExpertsResult:
    """One row. bytes_read: stored bytes of the distinct experts used, median over the runs.

    read_gb_s: the machine's read bandwidth, measured beside this row.
    ratio: this engine's time over ours for the same inputs, median over the runs; 1 for ours.
    """

    engine: str
    quant: str
    tier: str
    threads: int
    tokens: int
    runs: int
    median_ms: float
    min_ms: float
    bytes_read: int
    read_gb_s: float
    tflops: float
    ratio: float

    @property
    def gb_s(self) -> float:
        """Weight bytes read per second, in units of 10^9."""
        return self.bytes_read / self.median_ms / 1e6

    @property
    def share(self) -> float:
        """Of the read bandwidth; above 1 where a batch finds weights in a cache."""
        return self.gb_s / self.read_gb_s


class HybridK2:
    """Our own kernels as one of the engines."""

    def __init__(self, layer: Layer, kernels: NativeKernels, threads: int) -> None:
        self.quant, self.tier, self.threads = layer.quant, kernels.tier, threads
        self.expert_bytes = expert_bytes(layer.quant, layer.shape)
        self._kernels = kernels
        self._matrices = [kernels.matrix(stored) for stored in (layer.gate, layer.up, layer.down)]

    def prepare(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._y = torch.empty_like(inputs.x).fill_(0)  # the shared expert's result, in memory

    def compute(self) -> None:
        x, ids, weights = self._inputs.x, self._inputs.ids, self._inputs.weights
        self._kernels.moe(*self._matrices, x, ids, weights, out=self._y, add=True)

    def output(self) -> torch.Tensor:
        return self._y


def measure_experts(
    quant: str,
    batches: Sequence[int],
    shape: LayerShape,
    runtime: RuntimeConfig,
    *,
    peers: Sequence[str] = (),
    seconds: float = 2.0,
    huge_pages: bool = True,
) -> Iterator[ExpertsResult]:
    """Yields for each number of tokens a row for us and one for each engine of the peers.

    A row takes about `seconds` and at least 3 runs. Raises BadInputError where a peer is absent.
    """
    torch.set_num_threads(1)  # as the engine has it: torch's threads spin when they are done
    rng = np.random.Generator(np.random.SFC64(1))
    kernels = NativeKernels(_cpu, runtime)
    layer = synthetic_layer(rng, quant, shape, huge_pages)
    threads = runtime.resolved_threads
    engines: list[tuple[str, ExpertsEngine]] = [("hybrid-k2", HybridK2(layer, kernels, threads))]
    for name in peers:
        engines += [(name, each) for each in open_peer(name, layer, threads, max(batches))]
    for num_tokens in batches:
        read_gb_s = kernels.read_bandwidth(BANDWIDTH_BYTES, repeats=3)
        times: list[list[float]] = [[] for _ in engines]
        distinct = []
        while not distinct or sum(times[0]) < seconds:
            inputs = [random_inputs(rng, num_tokens, shape) for _ in range(ROUND_RUNS)]
            distinct += [each.distinct_experts for each in inputs[1:]]
            for (_, engine), spent in zip(engines, times, strict=True):
                if len(engines) > 1:
                    time.sleep(SETTLE_S)
                spent += _times(engine, inputs)
        flops = 2 * num_tokens * shape.experts_per_token * shape.expert_weights
        for (name, engine), spent in zip(engines, times, strict=True):
            median_s = statistics.median(spent)
            yield ExpertsResult(
                engine=name,
                quant=engine.quant,
                tier=engine.tier,
                threads=engine.threads,
                tokens=num_tokens,
                runs=len(spent),
                median_ms=1e3 * median_s,
                min_ms=1e3 * min(spent),
                bytes_read=int(statistics.median(distinct)) * engine.expert_bytes,
                read_gb_s=read_gb_s,
                tflops=flops / median_s / 1e12,
                ratio=statistics.median(
                    theirs / ours for theirs, ours in zip(spent, times[0], strict=True)
                ),
            )


def _times(engine: ExpertsEngine, inputs: Sequence[Inputs]) -> list[float]:
    """Seconds for each of the inputs but the first."""
    times = []
    for each in inputs:
        engine.prepare(each)
        started = time.perf_counter()
        engine.compute()
        times.append(time.perf_counter() - started)
    return times[1:]

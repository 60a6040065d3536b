"""The CPU kernels behind one small interface: the C++ extension where it is built, numba where it
is not.

Owns the thread pool. Knows nothing of modules or of the model: matrices of stored blocks in,
float32 out.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from hybrid_k2.backends.kernel_counters import KernelCounters
from hybrid_k2.backends.numa import numa_nodes, worker_places
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant.stored import StoredTensor

log = logging.getLogger(__name__)


class CpuKernels(Protocol):
    """Products of float32 activations with matrices that stay in their stored blocks."""

    def place(self, data: np.ndarray, stack: int, rows: int) -> None:
        """Has the system put a stack of experts' matrices onto the NUMA nodes that will read them.

        data: uint8 [stack * rows * row_bytes] of memory that was not written to yet; it stays as
        it is. Does nothing where there is one node.
        """

    def matrix(self, stored: StoredTensor) -> Any:
        """Wraps [rows, cols] or [stack, rows, cols] without copying; keep it, making one costs
        more than using it.
        """

    def linear(self, matrix: Any, x: torch.Tensor) -> torch.Tensor:
        """x [T, cols] float32 -> [T, rows] float32."""

    def batched_linear(self, matrix: Any, x: torch.Tensor) -> torch.Tensor:
        """x [S, T, cols] float32 -> [S, T, rows] float32, one matrix of the stack per s."""

    def moe(
        self,
        gate: Any,
        up: Any,
        down: Any,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
        add: bool = False,
    ) -> torch.Tensor:
        """sum_k weights[t, k] * down_e(silu(gate_e(x)) * up_e(x)) with e = expert_ids[t, k]; -1
        skips.

        x: [T, H] float32.  expert_ids: [T, K] int32.  weights: [T, K] float32.  Returns [T, H]
        float32, `out` where it is given; with add, what that held is a part of the sum.
        """

    def counters(self) -> KernelCounters:
        """A snapshot; any thread may ask, also while others compute."""


def open_cpu_kernels(runtime: RuntimeConfig) -> CpuKernels:
    """The best kernels this installation has; warns once, loudly, where that is not the C++
    extension.
    """
    try:
        from hybrid_k2 import _cpu
    except ImportError as error:
        from hybrid_k2.backends.cpu_numba import NumbaKernels

        log.warning(
            "the C++ kernels are not built (%s): experts and dense layers run on numba, about %dx "
            "slower. Install g++ and reinstall hybrid-k2 to build them.",
            error,
            NumbaKernels.SLOWDOWN,
        )
        return NumbaKernels(runtime.resolved_threads)
    return NativeKernels(_cpu, runtime)


class NativeKernels:
    """hybrid_k2._cpu with one thread pool and one choice of tiers."""

    def __init__(self, cpu: Any, runtime: RuntimeConfig) -> None:
        self._cpu = cpu
        places = worker_places(runtime.resolved_threads, numa_nodes())
        self._pool = cpu.ThreadPool(runtime.resolved_threads, places.cpus, places.nodes)
        self._kernels = cpu.Kernels(runtime.tier)
        log.info(
            "CPU kernels: tier %s, %d threads on %d NUMA nodes",
            self._kernels.tier,
            runtime.resolved_threads,
            self._pool.num_nodes,
        )

    @property
    def tier(self) -> str:
        """The tier in use; a type without a kernel there is served by a lower one."""
        return self._kernels.tier

    def read_bandwidth(self, num_bytes: int, repeats: int) -> float:
        """What this machine's memory delivers to the pool's threads, GB/s (10^9)."""
        return self._cpu.read_bandwidth(self._pool, num_bytes, repeats)

    def place(self, data: np.ndarray, stack: int, rows: int) -> None:
        if self._pool.num_nodes > 1:
            self._cpu.first_touch(self._pool, data, stack, rows)

    def matrix(self, stored: StoredTensor) -> Any:
        return self._cpu.Matrix(stored.data, stored.quant.name, stored.shape)

    def linear(self, matrix: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(x.shape[0], matrix.shape[-2])
        self._cpu.linear(self._pool, self._kernels, matrix, _array(x), y.numpy())
        return y

    def batched_linear(self, matrix: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(x.shape[0], x.shape[1], matrix.shape[-2])
        self._cpu.batched_linear(self._pool, self._kernels, matrix, _array(x), y.numpy())
        return y

    def moe(
        self,
        gate: Any,
        up: Any,
        down: Any,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
        add: bool = False,
    ) -> torch.Tensor:
        y = torch.empty_like(x) if out is None else out
        self._cpu.moe(
            self._pool,
            self._kernels,
            gate,
            up,
            down,
            _array(x),
            _array(expert_ids),
            _array(weights),
            y.numpy(),
            add=add,
        )
        return y

    def counters(self) -> KernelCounters:
        counts = self._pool.counters()
        return KernelCounters(
            busy_s=counts["busy_ns"] / 1e9,
            weight_bytes=counts["weight_bytes"],
            experts=counts["experts"],
            skipped=counts["skipped"],
        )

    def handoff(self, layers: Sequence[tuple[Any, Any, Any]], *memory: torch.Tensor) -> Any:
        """The experts (gate, up, down) of a captured GPU step's layers, in that order.

        memory: published and answered int32 [layers, FLAG_STRIDE], then x, expert_ids, weights and
        y of the largest step, all of them pinned. Returns the extension's Handoff.
        """
        published, answered, *arrays = (tensor.numpy() for tensor in memory)
        flags = published.view(np.uint32), answered.view(np.uint32)
        return self._cpu.Handoff(self._pool, self._kernels, list(layers), *flags, *arrays)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()

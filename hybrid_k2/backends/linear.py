"""Dense projections y = W x: on the CPU from the stored blocks, on a GPU from stored blocks or
bfloat16.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.registry import stays_stored
from hybrid_k2.backends.vram import launching_on
from hybrid_k2.quant.stored import StoredTensor

# Decoded at a time, in float32: lm_head is 163840 x 7168, 4.7 GB, and would not fit beside a model.
_SCRATCH_BYTES = 256 << 20


class LinearCpu:
    """Reads the weight where it lies; the C++ kernels split its rows over the cores."""

    device = torch.device("cpu")

    def __init__(self, tensors: Mapping[str, StoredTensor], context: BackendContext) -> None:
        self._kernels = context.kernels
        self._matrix = context.kernels.matrix(tensors["weight"])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] float32. Returns [T, out] float32 on the CPU."""
        return self._kernels.linear(self._matrix, x.cpu())


class LinearGpu:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cuda:0",
        weights: str = "stored",
    ) -> None:
        self.device = torch.device(device)
        self._weight = gpu_weight(tensors["weight"], device=self.device, weights=weights)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] float32 or bfloat16. Returns [T, out] float32 on `device`."""
        with launching_on(self.device):
            return self._weight.matmul(x.to(self.device))


class GpuWeight(Protocol):
    """A matrix in VRAM; products in bfloat16 or better, sums in float32."""

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, cols] float32 or bfloat16 on the weight's device. Returns [T, rows] float32."""


def gpu_weight(*stored: StoredTensor, device: torch.device, weights: str) -> GpuWeight:
    """One matrix of all rows of `stored`, in that order.

    weights: `stored` keeps the blocks of formats that the GPU's kernels read, and bfloat16 what is
    of another; `bfloat16` decodes all of them now.
    """
    formats = {part.quant.name for part in stored}
    if weights == "stored" and len(formats) == 1 and stays_stored(*formats):
        return StoredWeight(stored, device)
    return DenseWeight(stored, device)


class StoredWeight:
    def __init__(self, stored: tuple[StoredTensor, ...], device: torch.device) -> None:
        from hybrid_k2.kernels.matrix import upload

        self._matrix = upload(*stored, device=device)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        from hybrid_k2.kernels.linear import quantised_linear

        return quantised_linear(x, self._matrix)


class DenseWeight:
    def __init__(self, stored: tuple[StoredTensor, ...], device: torch.device) -> None:
        cols = stored[0].shape[-1]
        num_rows = sum(part.shape[0] for part in stored)
        self._dense = torch.empty(num_rows, cols, dtype=torch.bfloat16, device=device)
        step = max(1, _SCRATCH_BYTES // (4 * cols))
        first = 0
        for part in stored:
            rows = part.as_torch().view(part.shape[0], -1)
            for blocks in rows.split(step):
                decoded = part.quant.dequantise(blocks.to(device))
                self._dense[first : first + len(blocks)] = decoded
                first += len(blocks)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(torch.bfloat16), self._dense).float()

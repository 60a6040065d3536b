"""Dense projections y = W x: on the CPU from the stored blocks, on a GPU from stored blocks or
bfloat16.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.quant.stored import StoredTensor

# Rows dequantised at a time: lm_head is 163840 x 7168, 4.7 GB in float32, and would not fit beside
# the model.
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
        self._weight = GpuWeight(tensors["weight"], self.device, weights)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] float32. Returns [T, out] float32 on `device`; products in bfloat16, sums in
        float32.
        """
        return self._weight.matmul(x.to(self.device))


class GpuWeight:
    """One matrix in VRAM: `stored` keeps its blocks and dequantises per use, `bfloat16`
    dequantises once.
    """

    def __init__(self, stored: StoredTensor, device: torch.device, weights: str) -> None:
        self._stored = stored
        rows, cols = stored.shape
        self._chunk_rows = max(1, _SCRATCH_BYTES // (4 * cols))
        if weights == "bfloat16":
            self._blocks = None
            self._dense = torch.empty(rows, cols, dtype=torch.bfloat16, device=device)
            for first in range(0, rows, self._chunk_rows):
                last = min(first + self._chunk_rows, rows)
                self._dense[first:last] = self._dequantise(self._upload(first, last, device))
        else:
            self._blocks = self._upload(0, rows, device)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, cols] on the weight's device. Returns [T, rows] float32."""
        x = x.to(torch.bfloat16)
        if self._blocks is None:
            return F.linear(x, self._dense).float()
        parts = [
            F.linear(x, self._dequantise(blocks).to(torch.bfloat16))
            for blocks in self._blocks.split(self._chunk_rows)
        ]
        return torch.cat(parts, dim=-1).float()

    def _upload(self, first: int, last: int, device: torch.device) -> torch.Tensor:
        rows = self._stored.as_torch().view(self._stored.shape[0], -1)
        return rows[first:last].to(device)  # [rows, row_bytes] uint8

    def _dequantise(self, blocks: torch.Tensor) -> torch.Tensor:
        return self._stored.quant.dequantise(blocks)

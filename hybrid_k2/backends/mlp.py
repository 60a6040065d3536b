"""The SwiGLU feed-forward of dense layers and of the shared expert: down(silu(gate(x)) * up(x))."""

from collections.abc import Mapping

import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.linear import gpu_weight
from hybrid_k2.backends.vram import launching_on
from hybrid_k2.quant.stored import StoredTensor


class MlpCpu:
    """A mixture of one expert, so that gate, up, SiLU and down run in one parallel region of the
    same kernel.
    """

    device = torch.device("cpu")

    def __init__(self, tensors: Mapping[str, StoredTensor], context: BackendContext) -> None:
        self._kernels = context.kernels
        self._matrices = [
            context.kernels.matrix(tensors[name].reshaped(1, *tensors[name].shape))
            for name in ("gate_proj", "up_proj", "down_proj")
        ]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden] float32. Returns the same shape on the CPU."""
        expert_ids = torch.zeros(x.shape[0], 1, dtype=torch.int32)
        return self._kernels.moe(*self._matrices, x.cpu(), expert_ids, torch.ones(x.shape[0], 1))


class MlpGpu:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cuda:0",
        weights: str = "stored",
    ) -> None:
        self.device = torch.device(device)
        gate, up, down = (tensors[key] for key in ("gate_proj", "up_proj", "down_proj"))
        self._gate_up = gpu_weight(gate, up, device=self.device, weights=weights)
        self._down = gpu_weight(down, device=self.device, weights=weights)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden] float32 or bfloat16. Returns [T, hidden] float32 on `device`."""
        from hybrid_k2.kernels.activation import silu_multiply

        with launching_on(self.device):
            return self._down.matmul(silu_multiply(self._gate_up.matmul(x.to(self.device))))

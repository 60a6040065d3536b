"""RMSNorm in float32: x * rsqrt(mean(x^2) + eps) * weight."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.quant.stored import StoredTensor


class Norm:
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cpu",
        eps: float = 0.0,
    ) -> None:
        """eps 0 means the config's rms_norm_eps, which vLLM and llama.cpp use for every norm;
        Moonshot's own modelling
        code builds q_a/kv_a_layernorm with 1e-6 whatever the config says, and a rule can ask for
        that.
        """
        self.device = torch.device(device)
        self._weight = tensors["weight"].dequantise().to(self.device)
        self._eps = eps or context.config.rms_norm_eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, n] float32. Returns the same shape on `device`."""
        return F.rms_norm(x.to(self.device), self._weight.shape, self._weight, self._eps)

    @property
    def constants(self) -> tuple[torch.Tensor, float]:
        """Weight and eps, for a kernel that takes the norm along."""
        return self._weight, self._eps

    def after_adding(
        self, h: torch.Tensor, added: torch.Tensor | None, host_x: torch.Tensor | None = None
    ) -> torch.Tensor:
        """h += added, in place; returns the norm of h. One launch, on a GPU only.

        host_x: pinned memory that receives the result too.
        """
        from hybrid_k2.kernels.handoff import add_and_norm

        return add_and_norm(h, added, self._weight, self._eps, host_x)

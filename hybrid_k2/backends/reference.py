"""Linear, MLP and Experts in plain float32 torch: the oracle the fast backends are compared with.

Weights are dequantised at each use (an expert only when a token goes to it), so it needs little
memory, runs on any device torch has, and is slow. Attention, norms, router and embedding are plain
torch already.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hybrid_k2.backends.attention import Attention
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.embedding import Embedding
from hybrid_k2.backends.norm import Norm
from hybrid_k2.backends.router import Router
from hybrid_k2.quant.stored import StoredTensor

__all__ = ["MLP", "Attention", "Embedding", "Experts", "Linear", "Norm", "Router"]

Slot = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Linear:
    def __init__(
        self, tensors: Mapping[str, StoredTensor], context: BackendContext, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._weight = tensors["weight"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] float32. Returns [T, out] float32 on `device`."""
        return F.linear(x.to(self.device), self._weight.dequantise().to(self.device))


class MLP:
    def __init__(
        self, tensors: Mapping[str, StoredTensor], context: BackendContext, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._weights = [tensors[name] for name in ("gate_proj", "up_proj", "down_proj")]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden] float32. Returns the same shape on `device`."""
        gate, up, down = (weight.dequantise().to(self.device) for weight in self._weights)
        return swiglu(x.to(self.device), gate, up, down)


class Experts:
    deferred_experts = 0

    def __init__(
        self, tensors: Mapping[str, StoredTensor], context: BackendContext, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._weights = [tensors[name] for name in ("gate_proj", "up_proj", "down_proj")]

    def submit(self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> Slot:
        """x: [T, hidden] float32.  expert_ids: [T, K] int32, -1 skips.  weights: [T, K] float32."""
        return x, expert_ids, weights

    def sync(self, slot: Slot, shared: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [T, hidden] float32 on the device that x came from, or `shared` with it added."""
        x, expert_ids, weights = (tensor.to(self.device) for tensor in slot)
        y = torch.zeros_like(x)
        for expert_id in expert_ids.unique().tolist():
            if expert_id < 0:
                continue
            tokens, choice = (expert_ids == expert_id).nonzero(as_tuple=True)
            gate, up, down = (w.dequantise(expert_id).to(self.device) for w in self._weights)
            out = swiglu(x[tokens], gate, up, down) * weights[tokens, choice, None]
            y.index_add_(0, tokens, out)
        return y.to(slot[0].device) if shared is None else shared.add_(y.to(shared.device))


def swiglu(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)): x [T, H], gate and up [F, H], down [H, F]."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

"""The routed experts, computed on the CPU from the GGUF blocks where they lie.

`submit` takes the activations off their device and `sync` computes, so what the caller launches
between the two (the shared expert on a GPU) runs at the same time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.vram import launching_on
from hybrid_k2.errors import BadInputError
from hybrid_k2.quant.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class ExpertsSlot:
    """One submitted layer: its inputs in host memory, and after which events they are there: the
    experts and weights first, then x; None where nothing had to be copied.
    """

    x: torch.Tensor
    expert_ids: torch.Tensor
    weights: torch.Tensor
    result_device: torch.device
    routed: "torch.cuda.Event | None" = None
    copied: "torch.cuda.Event | None" = None


class ExpertsCpu:
    device = torch.device("cpu")
    on_bus: Any = None  # a table of them in host memory, where a GPU can read it

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        deferred_experts: int = 0,
    ) -> None:
        """deferred_experts: of a decoded token, those of least weight, whose results the model adds
        a layer later, so that the CPU has them to compute while a GPU does attention; never
        those that the GPU computes, and none of the last layer.
        """
        if deferred_experts:
            most = context.config.num_experts_per_tok
            if deferred_experts >= most:
                raise BadInputError(
                    f"deferred_experts: {deferred_experts}, expected 0 to {most - 1}: a token has "
                    f"{most} experts, and one at least counts in its layer"
                )
            if context.layer_idx == context.config.num_hidden_layers - 1:
                deferred_experts = 0
        self.deferred_experts = deferred_experts
        self.kernels = context.kernels
        self.matrices = tuple(
            context.kernels.matrix(tensors[name]) for name in ("gate_proj", "up_proj", "down_proj")
        )

    def submit(
        self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> ExpertsSlot:
        """Starts moving the inputs to host memory; never waits for the GPU.

        x: [T, hidden] float32.  expert_ids: [T, K] int32, -1 skips.  weights: [T, K] float32.
        """
        if x.device.type == "cpu" and expert_ids.device.type == "cpu":
            return ExpertsSlot(x, expert_ids, weights, x.device)
        with launching_on(x.device):
            routed, copied = torch.cuda.Event(), torch.cuda.Event()
            host_ids, host_weights = _pinned_copy(expert_ids), _pinned_copy(weights)
            routed.record()
            host_x = _pinned_copy(x)
            copied.record()
        return ExpertsSlot(host_x, host_ids, host_weights, x.device, routed, copied)

    def gpu_hits(self, shape: tuple[int, ...], bus_hits: torch.Tensor) -> Any:
        """The GPU's part of a captured step with so many [tokens, experts of each], a
        kernels.handoff.GpuHits; None where all are the CPU's.  bus_hits: as there.
        """
        return None

    def sync(self, slot: ExpertsSlot, shared: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the slot; returns [T, hidden] float32 on the device that x came from, or with
        `shared`, the shared expert's result, both together in its memory.
        """
        if slot.copied is not None:
            slot.copied.synchronize()
        inputs = (*self.matrices, slot.x, slot.expert_ids, slot.weights)
        if shared is None:
            return self.kernels.moe(*inputs).to(slot.result_device)
        # Where all is in host memory, nothing is cleared, allocated or added up.
        if shared.device.type == "cpu" and shared.is_contiguous():
            return self.kernels.moe(*inputs, out=shared, add=True)
        return shared.add_(self.kernels.moe(*inputs).to(shared.device))


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)

"""The routed experts, computed on the CPU from the GGUF blocks where they lie.

`submit` takes the activations off their device and `sync` computes, so what the caller launches
between the two (the shared expert on a GPU) runs at the same time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.quant.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class ExpertsSlot:
    """One submitted layer: its inputs in host memory, and the event after which they are there."""

    x: torch.Tensor
    expert_ids: torch.Tensor
    weights: torch.Tensor
    result_device: torch.device
    copied: "torch.cuda.Event | None"


class ExpertsCpu:
    device = torch.device("cpu")
    resident: Any = None  # ResidentExperts, where some of them are in VRAM as well

    def __init__(self, tensors: Mapping[str, StoredTensor], context: BackendContext) -> None:
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
            return ExpertsSlot(x, expert_ids, weights, x.device, None)
        inputs = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
            for t in (x, expert_ids, weights)
        ]
        copied = torch.cuda.Event()
        copied.record()
        return ExpertsSlot(*inputs, x.device, copied)

    def sync(self, slot: ExpertsSlot) -> torch.Tensor:
        """Computes the slot; returns [T, hidden] float32 on the device that x came from."""
        if slot.copied is not None:
            slot.copied.synchronize()
        y = self.kernels.moe(*self.matrices, slot.x, slot.expert_ids, slot.weights)
        return y.to(slot.result_device)

"""The experts of one layer that stay in VRAM: those that prompts were routed to most.

Owns their bytes, a place each; how much an expert is used, routing_statistics.py knows. What moves
in is copied from a place of the GPU where a prompt's experts pass anyway, so nothing waits for it;
offsets are rewritten in place, so a captured step sees the change. Knows nothing of how a step is
computed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hybrid_k2.quant.stored import StoredTensor

_OFFSET_UNIT = 16  # bytes, as the GPU's kernels load


class ResidentExperts:
    """expert ids -> places; `table` is what kernels.experts.grouped_experts takes."""

    def __init__(
        self,
        tensors: Sequence[StoredTensor],
        num_places: int,
        device: torch.device,
        counts: np.ndarray,
    ) -> None:
        """tensors: gate, up and down, [E, rows, cols], the first two of one format.  counts: [E],
        how much each expert is used, kept up to date by its owner.
        """
        from hybrid_k2.kernels.expert_table import ExpertMatrix, ExpertTable

        self._num_experts = tensors[0].shape[0]
        self._counts = counts
        self._place_of: dict[int, int] = {}
        self._part_bytes = [tensor.num_bytes // self._num_experts for tensor in tensors]
        self._strides = [-(-size // _OFFSET_UNIT) * _OFFSET_UNIT for size in self._part_bytes]
        self._free = list(range(num_places))
        matrices = []
        for tensor, stride in zip(tensors, self._strides, strict=True):
            data = torch.empty(num_places * stride, dtype=torch.uint8, device=device)
            offsets = torch.full((self._num_experts,), -1, dtype=torch.int64, device=device)
            matrices.append(ExpertMatrix(data, tensor.quant, tensor.shape[1:], offsets))
        self.table: Any = ExpertTable(*matrices)
        self._matrices = matrices

    def __contains__(self, expert: int) -> bool:
        return expert in self._place_of

    def __iter__(self) -> Any:
        return iter(self._place_of)

    def parts(self, expert: int) -> list[torch.Tensor]:
        """The expert's bytes in VRAM, gate, up and down; valid until the next `adopt`."""
        place = self._place_of[expert]
        return [
            matrix.data[place * stride : place * stride + size]
            for matrix, stride, size in zip(
                self._matrices, self._strides, self._part_bytes, strict=True
            )
        ]

    def wants(self, expert: int) -> bool:
        """True where the expert is not here and would be, by the counts."""
        if expert in self._place_of:
            return False
        return bool(self._free) or self._counts[expert] > self._counts[self._coldest()]

    def adopt(self, expert: int, parts: Sequence[torch.Tensor]) -> None:
        """Copies an expert in, for the coldest one if there is no room; in the current stream's
        order, so that steps before it read the old bytes and steps after it the new ones.
        """
        if self._free:
            place = self._free.pop()
        else:
            place = self._place_of.pop(self._evict(self._coldest()))
        self._place_of[expert] = place
        for target, part in zip(self.parts(expert), parts, strict=True):
            target.copy_(part, non_blocking=True)
        for matrix, stride in zip(self._matrices, self._strides, strict=True):
            matrix.offsets[expert] = place * stride

    def _coldest(self) -> int:
        return min(self._place_of, key=lambda expert: self._counts[expert])

    def _evict(self, expert: int) -> int:
        for matrix in self._matrices:
            matrix.offsets[expert] = -1
        return expert

"""Q4_K: 8 groups of 32 four-bit codes, 6-bit scales and minima; w = d * scale * q - dmin * min."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, scales_and_mins, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | dmin f16 | 12 bytes scales and minima | 4 x 32 bytes of codes.

    A run of 32 bytes holds two groups: one in the low nibbles, the next in the high ones.
    """
    scales, mins = scales_and_mins(blocks[:, 4:16])  # [N, 8] each
    codes = unpack(blocks[:, 16:].unflatten(1, (4, 32)), 4).reshape(-1, 8, 32)
    d, dmin = half(blocks[:, :2]), half(blocks[:, 2:4])
    weights = (d * scales.float()).unsqueeze(-1) * codes.float()
    return (weights - (dmin * mins.float()).unsqueeze(-1)).flatten(1)


Q4_K = QuantFormat("Q4_K", 12, 256, 144, decode, half_offsets=(0, 2))

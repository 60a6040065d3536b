"""Q5_K: 8 groups of 32 five-bit codes, 6-bit scales and minima; w = d * scale * q - dmin * min."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, scales_and_mins, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | dmin f16 | 12 bytes scales and minima | 32 of fifth bits | 128 of nibbles.

    Weight i of group g has its fifth bit in bit g of byte i.
    """
    scales, mins = scales_and_mins(blocks[:, 4:16])  # [N, 8] each
    low = unpack(blocks[:, 48:].unflatten(1, (4, 32)), 4).reshape(-1, 8, 32)
    codes = low | (unpack(blocks[:, 16:48], 1) << 4)
    d, dmin = half(blocks[:, :2]), half(blocks[:, 2:4])
    weights = (d * scales.float()).unsqueeze(-1) * codes.float()
    return (weights - (dmin * mins.float()).unsqueeze(-1)).flatten(1)


Q5_K = QuantFormat("Q5_K", 13, 256, 176, decode, half_offsets=(0, 2))

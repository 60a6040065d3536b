"""Q3_K: 16 groups of 16 three-bit codes with six-bit scales; w = d * (scale - 32) * (q - 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 32 bytes of third bits | 2 x 32 bytes of low bits as in Q2_K | 12 of scales | d f16.

    Weight 32 s + i has its third bit in bit s of byte i. The scales' low nibbles fill 8 bytes (0-7
    low, 8-15 high), their two high bits the last 4 (scale 4 s + i in bits 2s, 2s+1 of byte i).
    """
    low = unpack(blocks[:, 32:96].unflatten(1, (2, 32)), 2).flatten(1)  # [N, 256]
    codes = low | (unpack(blocks[:, :32], 1).flatten(1) << 2)
    scales = unpack(blocks[:, 96:104], 4).flatten(1) | (
        unpack(blocks[:, 104:108], 2).flatten(1) << 4
    )
    scale = half(blocks[:, 108:110]) * (scales.float() - 32)  # [N, 16]
    return (scale.unsqueeze(-1) * (codes.float() - 4).unflatten(1, (16, 16))).flatten(1)


Q3_K = QuantFormat("Q3_K", 11, 256, 110, decode, half_offsets=(108,))

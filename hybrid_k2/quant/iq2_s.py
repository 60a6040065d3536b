"""IQ2_S: runs of 8 weights from a grid of 1024, with signs; 16 groups of 16 with 4-bit scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, half
from hybrid_k2.quant.codebooks import grid, signs
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 32 low bytes of indices | 32 of sign bits | 8 of high bits | 8 of scales.

    w = d * (scale + 1/2) / 4 * sign * grid.
    """
    scale = half(blocks[:, :2]) * (bits_of(blocks[:, 74:], 4).float() + 0.5) * 0.25  # [N, 16]
    indices = blocks[:, 2:34].int() | (bits_of(blocks[:, 66:74], 2).int() << 8)  # [N, 32]
    runs = grid("IQ2_S", blocks.device)[indices].reshape(-1, 16, 16)
    sign = signs(blocks[:, 34:66]).unflatten(1, (16, 16))
    return (scale.unsqueeze(-1) * runs * sign).flatten(1)


IQ2_S = QuantFormat("IQ2_S", 22, 256, 82, decode, half_offsets=(0,))

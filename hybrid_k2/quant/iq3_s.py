"""IQ3_S: runs of 4 weights from a grid of 512, with signs; 8 groups of 32 with 4-bit scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, half
from hybrid_k2.quant.codebooks import grid, signs
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 64 low bytes of indices | 8 of ninth bits | 32 of sign bits | 4 of scales.

    w = d * (2 scale + 1) * sign * grid.
    """
    scale = half(blocks[:, :2]) * (2 * bits_of(blocks[:, 106:], 4).float() + 1)  # [N, 8]
    indices = blocks[:, 2:66].int() | (bits_of(blocks[:, 66:74]).int() << 8)  # [N, 64]
    runs = grid("IQ3_S", blocks.device)[indices].reshape(-1, 8, 32)
    sign = signs(blocks[:, 74:106]).unflatten(1, (8, 32))
    return (scale.unsqueeze(-1) * runs * sign).flatten(1)


IQ3_S = QuantFormat("IQ3_S", 21, 256, 110, decode, half_offsets=(0,))

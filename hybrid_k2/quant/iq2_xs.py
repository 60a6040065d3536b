"""IQ2_XS: runs of 8 weights from a grid of 512, with signs; 16 groups of 16 with 4-bit scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, half, integers
from hybrid_k2.quant.codebooks import even_signs, grid, signs
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 32 words of 9 bits of grid index and 7 of signs | 8 bytes of scales.

    w = d * (scale + 1/2) / 4 * sign * grid.
    """
    import torch

    words = integers(blocks[:, 2:66], torch.int16).int() & 0xFFFF  # [N, 32]
    scale = half(blocks[:, :2]) * (bits_of(blocks[:, 66:], 4).float() + 0.5) * 0.25  # [N, 16]
    sign = signs(even_signs(words >> 9)).unflatten(1, (16, 16))
    runs = grid("IQ2_XS", blocks.device)[words & 511].reshape(-1, 16, 16)
    return (scale.unsqueeze(-1) * runs * sign).flatten(1)


IQ2_XS = QuantFormat("IQ2_XS", 17, 256, 74, decode, half_offsets=(0,))

"""IQ2_XXS: runs of 8 weights from a grid of 256, with signs; 8 groups of 32 with 4-bit scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, integers
from hybrid_k2.quant.codebooks import even_signs, grid, signs
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 8 groups of: 4 grid indices | 4 x 7 bits of signs, 4 bits of scale.

    w = d * (scale + 1/2) / 4 * sign * grid.
    """
    import torch

    pairs = blocks[:, 2:].unflatten(1, (8, 8))
    words = integers(pairs[..., 4:], torch.int32)  # [N, 8, 1]
    scale = half(blocks[:, :2]) * (((words[..., 0] >> 28) & 15).float() + 0.5) * 0.25  # [N, 8]
    shifts = torch.arange(0, 28, 7, device=blocks.device)
    sign = signs(even_signs((words >> shifts) & 127))  # [N, 8, 32]
    runs = grid("IQ2_XXS", blocks.device)[pairs[..., :4].int()].flatten(-2)  # [N, 8, 32]
    return (scale.unsqueeze(-1) * runs * sign).flatten(1)


IQ2_XXS = QuantFormat("IQ2_XXS", 16, 256, 66, decode, half_offsets=(0,))

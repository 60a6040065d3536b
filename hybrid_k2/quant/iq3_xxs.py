"""IQ3_XXS: runs of 4 weights from a grid of 256, with signs; 8 groups of 32 with 4-bit scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, integers
from hybrid_k2.quant.codebooks import even_signs, grid, signs
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 64 grid indices | 8 words of 4 x 7 bits of signs and 4 bits of scale.

    w = d * (scale + 1/2) / 2 * sign * grid.
    """
    import torch

    words = integers(blocks[:, 66:], torch.int32).unsqueeze(-1)  # [N, 8, 1]
    scale = half(blocks[:, :2]) * (((words[..., 0] >> 28) & 15).float() + 0.5) * 0.5  # [N, 8]
    shifts = torch.arange(0, 28, 7, device=blocks.device)
    sign = signs(even_signs((words >> shifts) & 127))  # [N, 8, 32]
    runs = grid("IQ3_XXS", blocks.device)[blocks[:, 2:66].int()].reshape(-1, 8, 32)
    return (scale.unsqueeze(-1) * runs * sign).flatten(1)


IQ3_XXS = QuantFormat("IQ3_XXS", 18, 256, 98, decode, half_offsets=(0,))

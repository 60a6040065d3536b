"""IQ1_S: runs of 8 ternary weights from a grid of 2048; 8 groups of 32 with a scale and a shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, integers
from hybrid_k2.quant.codebooks import grid
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 32 low bytes of indices | 8 words, one a group.

    A word has the high bits of four indices (3 each), 3 of scale, and the sign of the shift by 1/8:
    w = d * (2 scale + 1) * (grid + shift).
    """
    import torch

    words = integers(blocks[:, 34:], torch.int16).int() & 0xFFFF  # [N, 8]
    scale = half(blocks[:, :2]) * (2 * ((words >> 12) & 7) + 1)
    shift = torch.where(words & 0x8000 == 0, 0.125, -0.125)
    high = (words.unsqueeze(-1) >> torch.arange(0, 12, 3, device=blocks.device)) & 7  # [N, 8, 4]
    indices = blocks[:, 2:34].int() | (high.flatten(1) << 8)
    runs = grid("IQ1_S", blocks.device)[indices].reshape(-1, 8, 32)
    return (scale.unsqueeze(-1) * (runs + shift.unsqueeze(-1))).flatten(1)


IQ1_S = QuantFormat("IQ1_S", 19, 256, 50, decode, half_offsets=(0,))

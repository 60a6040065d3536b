"""IQ1_M: runs of 8 ternary weights from IQ1_S's grid, each with a shift; 16 scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.blocks import bits_of, half, integers
from hybrid_k2.quant.codebooks import grid
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 32 low bytes of indices | 16 of nibbles, one a run | 4 words of scales.

    A nibble has an index's three high bits and the sign of the shift by 1/8. A word has four scales
    of 3 bits and a nibble of d, a float16. w = d * (2 scale + 1) * (grid + shift).
    """
    import torch

    words = integers(blocks[:, 48:], torch.int16).int() & 0xFFFF  # [N, 4]
    shifts = torch.arange(0, 12, 3, device=blocks.device)
    scales = ((words.unsqueeze(-1) >> shifts) & 7).flatten(1)  # [N, 16]
    top = bits_of(blocks[:, 49::2], 4)[:, 1::2]  # the words' top nibbles [N, 4]
    scale = half(top[:, 0::2] | (top[:, 1::2] << 4)) * (2 * scales + 1)
    nibbles = bits_of(blocks[:, 32:48], 4).int()  # [N, 32]
    shift = torch.where(nibbles & 8 == 0, 0.125, -0.125).unsqueeze(-1)
    runs = grid("IQ1_S", blocks.device)[blocks[:, :32].int() | ((nibbles & 7) << 8)]  # [N, 32, 8]
    return (scale.unsqueeze(-1) * (runs + shift).reshape(-1, 16, 16)).flatten(1)


def is_finite(blocks: np.ndarray) -> bool:
    """Whether d, scattered over the words' top nibbles, is finite in all of uint8 [N, 56]."""
    high = (blocks[:, 55] & 0xF0) | (blocks[:, 53] >> 4)  # d's upper byte
    return not np.any((high & 0x7C) == 0x7C)


def set_scale(blocks: np.ndarray, scale: float) -> None:
    """Writes d into the four top nibbles of every block of uint8 [N, 56]."""
    bits = int(np.float16(scale).view(np.uint16))
    for nibble, offset in enumerate((49, 51, 53, 55)):
        blocks[:, offset] = (blocks[:, offset] & 15) | (bits >> 4 * nibble & 15) << 4


IQ1_M = QuantFormat("IQ1_M", 29, 256, 56, decode, is_finite=is_finite, set_scale=set_scale)

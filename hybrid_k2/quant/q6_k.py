"""Q6_K: 16 groups of 16 six-bit codes with signed 8-bit scales; w = d * scale * (q - 32)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 2 x 64 bytes of low nibbles | 2 x 32 bytes of high bits | scales int8[16] | d f16.

    Each half of the block holds 128 weights: weight 64 s + i has its low nibble in nibble s of byte
    i of the 64, weight 32 s + i its two high bits in bits 2s, 2s+1 of byte i of the 32.
    """
    import torch

    low = unpack(blocks[:, :128].unflatten(1, (2, 64)), 4).flatten(1)  # [N, 256]
    codes = low | (unpack(blocks[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1) << 4)
    scale = half(blocks[:, 208:210]) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scale.unsqueeze(-1) * (codes.float() - 32).unflatten(1, (16, 16))).flatten(1)


Q6_K = QuantFormat("Q6_K", 14, 256, 210, decode, half_offsets=(208,))

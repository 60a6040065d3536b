"""Q2_K: 16 groups of 16 two-bit codes, 4-bit scales and minima; w = d * scale * q - dmin * min."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 16 bytes scale | min << 4 | 2 x 32 bytes of codes | d f16 | dmin f16.

    A run of 32 bytes holds 128 weights: weight 32 s + i sits in bits 2s, 2s+1 of byte i.
    """
    scales, mins = unpack(blocks[:, :16], 4).float().unbind(1)  # [N, 16] each
    codes = unpack(blocks[:, 16:80].unflatten(1, (2, 32)), 2).reshape(-1, 16, 16)
    d, dmin = half(blocks[:, 80:82]), half(blocks[:, 82:84])
    weights = (d * scales).unsqueeze(-1) * codes.float() - (dmin * mins).unsqueeze(-1)
    return weights.flatten(1)


Q2_K = QuantFormat("Q2_K", 10, 256, 84, decode, half_offsets=(80, 82))

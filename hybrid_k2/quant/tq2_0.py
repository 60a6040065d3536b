"""TQ2_0: 256 ternary weights of two bits and one float16 scale; w = d * (q - 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 2 x 32 bytes of codes as in Q2_K | d f16."""
    codes = unpack(blocks[:, :64].unflatten(1, (2, 32)), 2).flatten(1)  # [N, 256]
    return half(blocks[:, 64:66]) * (codes.float() - 1)


TQ2_0 = QuantFormat("TQ2_0", 35, 256, 66, decode, half_offsets=(64,))

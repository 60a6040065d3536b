"""IQ4_NL: 32 four-bit codes into a table of 16 uneven steps, one float16 scale; w = d * step[q]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.codebooks import steps
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 16 bytes of nibbles as in Q4_0."""
    codes = unpack(blocks[:, 2:], 4).flatten(1)  # [N, 32]
    return half(blocks[:, :2]) * steps("IQ4_NL", blocks.device)[codes.int()]


IQ4_NL = QuantFormat("IQ4_NL", 20, 32, 18, decode, half_offsets=(0,))

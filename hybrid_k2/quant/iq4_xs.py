"""IQ4_XS: 8 groups of 32 codes of IQ4_NL, six-bit scales; w = d * (scale - 32) * step[q]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, half, unpack
from hybrid_k2.quant.codebooks import steps
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 2 bytes of the scales' high bits | 4 of low nibbles | 8 x 16 of nibbles.

    Each 16 bytes are a group, laid out as in Q4_0; scales lie in bit order.
    """
    scales = bits_of(blocks[:, 4:8], 4) | (bits_of(blocks[:, 2:4], 2) << 4)  # [N, 8]
    codes = unpack(blocks[:, 8:].unflatten(1, (8, 16)), 4).flatten(2)  # [N, 8, 32]
    scale = half(blocks[:, :2]) * (scales.float() - 32)
    return (scale.unsqueeze(-1) * steps("IQ4_NL", blocks.device)[codes.int()]).flatten(1)


IQ4_XS = QuantFormat("IQ4_XS", 23, 256, 136, decode, half_offsets=(0,))

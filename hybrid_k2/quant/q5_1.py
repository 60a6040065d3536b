"""Q5_1: 32 five-bit codes, one float16 scale and one float16 offset; w = d * q + m."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, encode_with_gguf, half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | m f16 | fifth bits of weights 0-31 | 16 bytes of nibbles as in Q4_0."""
    codes = unpack(blocks[:, 8:], 4).flatten(1) | (bits_of(blocks[:, 4:8]) << 4)  # [N, 32]
    return half(blocks[:, :2]) * codes.float() + half(blocks[:, 2:4])


Q5_1 = QuantFormat(
    "Q5_1", 7, 32, 24, decode, partial(encode_with_gguf, name="Q5_1"), half_offsets=(0, 2)
)

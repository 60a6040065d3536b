"""Q4_1: 32 four-bit codes, one float16 scale and one float16 offset; w = d * q + m."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import encode_with_gguf, half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | m f16 | 16 bytes of nibbles as in Q4_0."""
    codes = unpack(blocks[:, 4:], 4).flatten(1)  # [N, 32]
    return half(blocks[:, :2]) * codes.float() + half(blocks[:, 2:4])


Q4_1 = QuantFormat(
    "Q4_1", 3, 32, 20, decode, partial(encode_with_gguf, name="Q4_1"), half_offsets=(0, 2)
)

"""Q5_0: 32 five-bit codes around 16 and one float16 scale; w = d * (q - 16).

k_b of most Q4_K_M files of K2 has it: its rows are no multiple of 256.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import bits_of, encode_with_gguf, half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | fifth bits of weights 0-31 | 16 bytes of nibbles as in Q4_0."""
    codes = unpack(blocks[:, 6:], 4).flatten(1) | (bits_of(blocks[:, 2:6]) << 4)  # [N, 32]
    return half(blocks[:, :2]) * (codes.float() - 16)


Q5_0 = QuantFormat(
    "Q5_0", 6, 32, 22, decode, partial(encode_with_gguf, name="Q5_0"), half_offsets=(0,)
)

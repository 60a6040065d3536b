"""Q4_0: 32 four-bit codes around 8 and one float16 scale; w = d * (q - 8).

K2-Thinking's INT4 groups fit it code for code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import encode_with_gguf, half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | 16 bytes, weights 0-15 in the low nibbles and 16-31 in the high ones."""
    codes = unpack(blocks[:, 2:], 4).flatten(1)  # [N, 32]
    return half(blocks[:, :2]) * (codes.float() - 8)


Q4_0 = QuantFormat(
    "Q4_0", 2, 32, 18, decode, partial(encode_with_gguf, name="Q4_0"), half_offsets=(0,)
)

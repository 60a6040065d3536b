"""Q8_0: 32 signed bytes and one float16 scale; w = d * q."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import encode_with_gguf, half
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | q int8[32]."""
    import torch

    return half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


Q8_0 = QuantFormat(
    "Q8_0", 8, 32, 34, decode, partial(encode_with_gguf, name="Q8_0"), half_offsets=(0,)
)

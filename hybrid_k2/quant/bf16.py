"""BF16: the upper half of a float32."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import encode_with_gguf
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """uint8 [N, 2] -> float32 [N, 1]."""
    import torch

    return blocks.contiguous().view(torch.bfloat16).float()


BF16 = QuantFormat("BF16", 30, 1, 2, decode, partial(encode_with_gguf, name="BF16"))

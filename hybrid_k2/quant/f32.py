"""F32: plain float32."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import encode_with_gguf
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """uint8 [N, 4] -> float32 [N, 1], a copy."""
    import torch

    return blocks.contiguous().view(torch.float32).clone()


F32 = QuantFormat("F32", 0, 1, 4, decode, partial(encode_with_gguf, name="F32"))

"""MXFP4: 32 four-bit floats (E2M1) and one exponent byte (E8M0); w = 2^(e - 128) * step[q]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.blocks import unpack
from hybrid_k2.quant.codebooks import steps
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: e | 16 bytes of nibbles as in Q4_0. The steps are twice E2M1's values: integers."""
    import torch

    codes = unpack(blocks[:, 1:], 4).flatten(1)  # [N, 32]
    exponent = blocks[:, :1].int()
    subnormal = 0x00200000 << exponent.clamp(max=1)
    scale = torch.where(exponent < 2, subnormal, (exponent - 1) << 23).view(torch.float32)
    return scale * steps("MXFP4", blocks.device)[codes.int()]


def is_finite(blocks: np.ndarray) -> bool:
    """Whether no weight of uint8 [N, 17] can overflow: 2^(e - 128) * 12 does from e = 253 on."""
    return bool((blocks[:, 0] < 253).all())


def set_scale(blocks: np.ndarray, scale: float) -> None:
    """Writes the power of two nearest to `scale` into uint8 [N, 17]."""
    blocks[:, 0] = 128 + round(float(np.log2(scale)))


MXFP4 = QuantFormat("MXFP4", 39, 32, 17, decode, is_finite=is_finite, set_scale=set_scale)

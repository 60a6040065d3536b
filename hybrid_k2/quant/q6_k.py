"""Q6_K: 16 groups of 16 six-bit codes with signed 8-bit scales; w = d * scale * (q - 32)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.blocks import half, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 2 x 64 bytes of low nibbles | 2 x 32 bytes of high bits | scales int8[16] | d f16.

    Each half of the block holds 128 weights: weight 64 s + i has its low nibble in nibble s of byte
    i of the 64, weight 32 s + i its two high bits in bits 2s, 2s+1 of byte i of the 32.
    """
    import torch

    low = unpack(blocks[:, :128].unflatten(1, (2, 64)), 4).flatten(1)  # [N, 256]
    codes = low | (unpack(blocks[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1) << 4)
    scale = half(blocks[:, 208:210]) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scale.unsqueeze(-1) * (codes.float() - 32).unflatten(1, (16, 16))).flatten(1)


def encode(weights: np.ndarray) -> np.ndarray:
    """Searches each group's scale, rounds the scales to eight bits, then rounds the codes."""
    from hybrid_k2.quant.scale_search import search_symmetric, symmetric_codes

    groups = weights.reshape(-1, 16, 16)
    scales = search_symmetric(groups, 32)  # float32 [N, 16], signed
    largest = np.take_along_axis(scales, np.abs(scales).argmax(1, keepdims=True), axis=1)
    d = (largest / -128).astype(np.float16).astype(np.float32)  # [N, 1]
    steps = np.divide(scales, d, out=np.zeros_like(scales), where=d != 0)
    steps = np.rint(steps).clip(-128, 127)
    codes = symmetric_codes(groups, d * steps, 32).reshape(-1, 2, 128)  # uint8, 0-63
    low = codes.reshape(-1, 2, 2, 64) & 15
    high = codes.reshape(-1, 2, 4, 32) >> 4
    low_bytes = low[:, :, 0] | low[:, :, 1] << 4
    high_bytes = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        [
            low_bytes.reshape(-1, 128),
            high_bytes.reshape(-1, 64),
            steps.astype(np.int8).view(np.uint8),
            d.astype("<f2").view(np.uint8),
        ],
        axis=1,
    )


Q6_K = QuantFormat("Q6_K", 14, 256, 210, decode, encode, half_offsets=(208,))

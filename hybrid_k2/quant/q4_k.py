"""Q4_K: 8 groups of 32 four-bit codes, 6-bit scales and minima; w = d * scale * q - dmin * min."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.blocks import half, scales_and_mins, unpack
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: d f16 | dmin f16 | 12 bytes scales and minima | 4 x 32 bytes of codes.

    A run of 32 bytes holds two groups: one in the low nibbles, the next in the high ones.
    """
    scales, mins = scales_and_mins(blocks[:, 4:16])  # [N, 8] each
    codes = unpack(blocks[:, 16:].unflatten(1, (4, 32)), 4).reshape(-1, 8, 32)
    d, dmin = half(blocks[:, :2]), half(blocks[:, 2:4])
    weights = (d * scales.float()).unsqueeze(-1) * codes.float()
    return (weights - (dmin * mins.float()).unsqueeze(-1)).flatten(1)


def encode(weights: np.ndarray) -> np.ndarray:
    """Searches each group's scale and minimum, rounds both to six bits, then rounds the codes."""
    from hybrid_k2.quant.scale_search import affine_codes, search_affine

    groups = weights.reshape(-1, 8, 32)
    scales, mins = search_affine(groups, 15)  # float32 [N, 8] each, both >= 0
    d, scales = _six_bits(scales)
    dmin, mins = _six_bits(mins)
    codes = affine_codes(groups, d * scales, dmin * mins, 15)  # uint8 [N, 8, 32]
    nibbles = codes[:, 0::2] | codes[:, 1::2] << 4
    halves = np.concatenate([d, dmin], axis=1).astype("<f2").view(np.uint8)
    packed = _pack(scales.astype(np.uint8), mins.astype(np.uint8))
    return np.concatenate([halves, packed, nibbles.reshape(-1, 128)], axis=1)


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, 8] -> a common factor, exact in float16, [N, 1] and whole numbers 0-63 [N, 8]."""
    factor = (values.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    steps = np.divide(values, factor, out=np.zeros_like(values), where=factor > 0)
    return factor, np.rint(steps).clip(0, 63)


def _pack(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """The inverse of blocks.scales_and_mins: two of uint8 [N, 8] -> uint8 [N, 12]."""
    return np.concatenate(
        [
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            mins[:, :4] | mins[:, 4:] >> 4 << 6,
            scales[:, 4:] & 15 | mins[:, 4:] << 4,
        ],
        axis=1,
    )


Q4_K = QuantFormat("Q4_K", 12, 256, 144, decode, encode, half_offsets=(0, 2))

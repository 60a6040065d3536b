"""The few bit operations that all block formats share, on uint8 tensors of any device.

Knows no format. torch is imported when a block is first decoded, so that sizes can be had without
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def half(field: Tensor) -> Tensor:
    """uint8 [N, 2k], little-endian float16 -> float32 [N, k]."""
    import torch

    return field.contiguous().view(torch.float16).float()


def unpack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] -> uint8 [..., 8 / bits, n]: the lowest `bits` of every byte first."""
    import torch

    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.unsqueeze(-2) >> shifts.unsqueeze(-1)) & ((1 << bits) - 1)


def bits_of(field: Tensor, bits: int = 1) -> Tensor:
    """uint8 [..., n] -> uint8 [..., 8 / bits * n]: the pieces of a little-endian bit string."""
    return unpack(field, bits).transpose(-1, -2).flatten(-2)


def integers(field: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [..., n] -> little-endian `dtype` [..., n / itemsize], from any offset."""
    import torch

    # A slice of one block counts as contiguous, and its odd offset would not do for view().
    return field.clone(memory_format=torch.contiguous_format).view(dtype)


def scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 6-bit scales and minima of Q4_K and Q5_K: uint8 [N, 12] -> two of uint8 [N, 8].

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low six bits; bytes 8-11 hold the
    low halves of scales 4-7 (low nibble) and minima 4-7 (high nibble), whose two high bits are the
    top bits of bytes 0-7.
    """
    import torch

    low_scales, low_mins, nibbles = packed.unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat([low_scales & 0x3F, (nibbles & 0x0F) | ((low_scales >> 2) & 0x30)], dim=-1)
    mins = torch.cat([low_mins & 0x3F, (nibbles >> 4) | ((low_mins >> 2) & 0x30)], dim=-1)
    return scales, mins


def encode_with_gguf(blocks: np.ndarray, name: str) -> np.ndarray:
    """float32 [N, block_size] -> uint8 [N, block_bytes] by the gguf package."""
    import gguf

    # One long row: gguf works through rows in groups of 16, which are slow when rows are blocks.
    quantised = gguf.quants.quantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[name])
    return quantised.view(np.uint8).reshape(len(blocks), -1)

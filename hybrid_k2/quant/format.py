"""`QuantFormat`: what a block of stored bytes means. Each format's own file makes one.

Owns shapes, byte counts and the calling of a format's decode and encode functions. Knows no tensors
by name and no files. Nothing here imports torch: a plan or a listing needs sizes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Weights handled at a time: the temporaries then fit a cache or a few tens of MB, whatever the size
# of the tensor. Decoding lm_head of K2 in one piece would take 20 GB beside the result.
DECODE_WEIGHTS = 1 << 22
ENCODE_WEIGHTS = 1 << 22


@dataclass(frozen=True, slots=True)
class QuantFormat:
    """One ggml storage type: `block_size` weights in `block_bytes` bytes.

    decode: uint8 tensor [N, block_bytes], any device -> float32 [N, block_size], bit-exact with the
    gguf package.
    encode: float32 array [N, block_size] -> uint8 [N, block_bytes]; None where nothing here writes
    the format.
    half_offsets: byte offsets of the float16 scales in a block; a block without them holds finite
    weights only if the codes themselves are finite, so for F32, F16 and BF16 it is empty.
    is_finite, set_scale: for the formats whose one scale is no float16 field. Whether all weights
    of a uint8 array [N, block_bytes] are finite; and writes the nearest scale into all its blocks.
    """

    name: str
    ggml_type: int
    block_size: int
    block_bytes: int
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    half_offsets: tuple[int, ...] = ()
    is_finite: Callable[[np.ndarray], bool] | None = None
    set_scale: Callable[[np.ndarray, float], None] | None = None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.block_bytes / self.block_size

    def num_bytes(self, num_weights: int) -> int:
        """Bytes of `num_weights` weights, a whole number of blocks."""
        return num_weights // self.block_size * self.block_bytes

    def dequantise(self, data: Tensor) -> Tensor:
        """uint8 tensor [..., bytes of a row], any device -> float32 [..., weights of a row]."""
        import torch

        blocks = data.reshape(-1, self.block_bytes)
        shape = (len(blocks), self.block_size)
        weights = torch.empty(shape, dtype=torch.float32, device=data.device)
        step = max(1, DECODE_WEIGHTS // self.block_size)
        for start in range(0, len(blocks), step):
            weights[start : start + step] = self.decode(blocks[start : start + step])
        columns = data.shape[-1] // self.block_bytes * self.block_size
        return weights.reshape(*data.shape[:-1], columns)

    def quantise(self, weights: np.ndarray) -> np.ndarray:
        """float32 array [..., n] -> uint8 array [..., bytes]; n must be a whole number of blocks.

        Raises ValueError for a format that nothing here writes, and for an n that does not divide.
        """
        if self.encode is None:
            raise ValueError(f"hybrid-k2 reads {self.name} but does not write it")
        if weights.shape[-1] % self.block_size:
            raise ValueError(
                f"a row of {weights.shape[-1]} weights is not a whole number of {self.name} blocks"
            )
        blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, self.block_size)
        encoded = np.empty((len(blocks), self.block_bytes), np.uint8)
        step = max(1, ENCODE_WEIGHTS // self.block_size)
        for start in range(0, len(blocks), step):
            encoded[start : start + step] = self.encode(blocks[start : start + step])
        return encoded.reshape(*weights.shape[:-1], self.num_bytes(weights.shape[-1]))

"""`StoredTensor`: a named tensor as the bytes in which it lies on disk.

Owns the view of those bytes and their meaning as float32. Knows no file: the bytes may be a
mapping, a copy in RAM or a test's array.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor, device


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """Weights in a ggml storage format.

    shape: numpy order, the last dimension contiguous and a whole number of blocks.
    data: uint8 [num_bytes], read-only where it is a view of a mapped file; never written.
    """

    name: str
    quant: QuantFormat
    shape: tuple[int, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        assert self.shape[-1] % self.quant.block_size == 0, (self.name, self.shape, self.quant.name)
        expected = self.quant.num_bytes(math.prod(self.shape))
        assert self.data.dtype == np.uint8 and self.data.shape == (expected,), (
            self.name,
            self.data.shape,
        )

    @property
    def num_bytes(self) -> int:
        """Stored bytes, which are also the bytes it takes in memory as it is."""
        return self.data.nbytes

    @property
    def num_weights(self) -> int:
        """Weights, whatever their storage."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row (the last dimension)."""
        return self.quant.num_bytes(self.shape[-1])

    def as_torch(self) -> Tensor:
        """The bytes as a uint8 CPU tensor over the same memory; writing to it may crash."""
        return _as_torch(self.data)

    def dequantise(self, index: int | slice | None = None) -> Tensor:
        """float32 CPU tensor of `shape`, or of what `index` picks along dim 0 (one expert)."""
        if index is None:
            return self.quant.dequantise(_as_torch(self.data.reshape(-1, self.row_bytes))).reshape(
                self.shape
            )
        rows = _as_torch(self.data.reshape(*self.shape[:-1], self.row_bytes)[index])
        return self.quant.dequantise(rows)

    def rows(self, ids: Sequence[int] | np.ndarray, device: device | str = "cpu") -> Tensor:
        """float32 [len(ids), columns] on `device`: rows of a matrix, decoded there; only their
        bytes are read.
        """
        rows, columns = self.shape
        picked = self.data.reshape(rows, self.row_bytes)[np.asarray(ids, np.int64)]
        decoded = self.quant.dequantise(_as_torch(picked).to(device))
        return decoded.reshape(len(picked), columns)

    def reshaped(self, *shape: int) -> StoredTensor:
        """The same bytes seen with other leading dimensions; the last dimension must stay."""
        assert shape[-1] == self.shape[-1], (self.name, self.shape, shape)
        return replace(self, shape=shape)


def _as_torch(data: np.ndarray) -> Tensor:
    import torch

    with warnings.catch_warnings():
        # A mapped file is read-only; nothing in this package writes to weights.
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(data)

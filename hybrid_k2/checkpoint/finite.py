"""Which stored tensors hold NaN or infinity.

A block format can do so only in its scales, so only those are looked at; F32, F16 and BF16 are read
whole, in chunks. Dequantises nothing and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hybrid_k2.quant import StoredTensor

CHUNK_BYTES = 32 << 20
# An exponent of all ones is infinity or NaN.
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def find_non_finite(tensors: Iterable[StoredTensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity; reads every byte of all of them."""
    return [tensor.name for tensor in tensors if not is_finite(tensor)]


def is_finite(tensor: StoredTensor) -> bool:
    """Whether every weight of the tensor is a finite number."""
    quant = tensor.quant
    blocks = tensor.data.reshape(-1, quant.block_bytes)
    step = max(1, CHUNK_BYTES // quant.block_bytes)
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        if quant.name in _EXPONENT:
            if not _bits_are_finite(chunk, *_EXPONENT[quant.name]):
                return False
        elif quant.is_finite:
            if not quant.is_finite(chunk):
                return False
        elif not all(
            _bits_are_finite(chunk[:, offset : offset + 2], *_EXPONENT["F16"])
            for offset in quant.half_offsets
        ):
            return False
    return True


def _bits_are_finite(field: np.ndarray, dtype: str, exponent: int) -> bool:
    bits = np.ascontiguousarray(field).view(dtype)
    return not np.any((bits & exponent) == exponent)

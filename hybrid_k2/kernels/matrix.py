"""`QuantisedMatrix`: a matrix of ggml blocks in VRAM, and the table of formats that kernels decode.

Owns the two layouts in which the bytes may lie. *blocks*: as in the file. *apart*: all codes, then
all headers, the same number of bytes; formats whose blocks are no multiple of 16 bytes are stored
so at upload, because a GPU then loads 16 bytes where it else loads 2. Knows no kernels' launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hybrid_k2.kernels import decode
from hybrid_k2.quant import QuantFormat, by_name
from hybrid_k2.quant.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class DecodedFormat:
    """How kernels see a format: `function` of decode.py, and where in a block the codes lie.

    interleaved: units whose runs interleave (see decode.low_run).
    has_offset: False where the decode function's offsets mean nothing and are zero.
    """

    function: Any
    codes_bytes: int
    header_first: bool = True
    interleaved: int = 1
    has_offset: bool = True


DECODED = {
    "Q8_0": DecodedFormat(decode.decode_q8_0, 32, has_offset=False),
    "Q4_0": DecodedFormat(decode.decode_q4_0, 16),
    "Q4_1": DecodedFormat(decode.decode_q4_1, 16),
    "Q5_0": DecodedFormat(decode.decode_q5_0, 16),
    "Q5_1": DecodedFormat(decode.decode_q5_1, 16),
    "Q4_K": DecodedFormat(decode.decode_q4_k, 128, interleaved=2),
    "Q5_K": DecodedFormat(decode.decode_q5_k, 160, interleaved=2),
    "Q6_K": DecodedFormat(decode.decode_q6_k, 192, header_first=False, interleaved=4),
    "IQ4_NL": DecodedFormat(decode.decode_iq4_nl, 16, has_offset=False),
    "IQ4_XS": DecodedFormat(decode.decode_iq4_xs, 128, has_offset=False),
}
SUPPORTED = tuple(DECODED)

_UPLOAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """data: uint8 [bytes] on a GPU. shape: (rows, cols), or (stack, rows, cols).

    codes_base, header_base: bytes before the first block's codes and header; codes_stride and
    header_stride: from one block's to the next one's.
    """

    data: torch.Tensor
    quant: QuantFormat
    shape: tuple[int, ...]
    codes_base: int
    codes_stride: int
    header_base: int
    header_stride: int

    @property
    def format(self) -> DecodedFormat:
        """How kernels decode it."""
        return DECODED[self.quant.name]

    @property
    def units_per_row(self) -> int:
        """Units of 32 weights."""
        return self.shape[-1] // 32

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel over the matrix is compiled for, by parameter."""
        return {
            "decode": self.format.function,
            "UNITS_PER_ROW": self.units_per_row,
            "UNITS_PER_BLOCK": self.quant.block_size // 32,
            "CODES_STRIDE": self.codes_stride,
            "HEADER_STRIDE": self.header_stride,
            "INTERLEAVED": self.format.interleaved,
            "HAS_OFFSET": self.format.has_offset,
            "ALIGNED": self.is_aligned,
        }

    def rows(self, picked: slice) -> QuantisedMatrix:
        """The same memory seen as fewer rows (of a matrix of two dimensions), without a step."""
        num_rows, cols = self.shape
        first, last, _ = picked.indices(num_rows)
        blocks = first * (cols // self.quant.block_size)
        return replace(
            self,
            shape=(last - first, cols),
            codes_base=self.codes_base + blocks * self.codes_stride,
            header_base=self.header_base + blocks * self.header_stride,
        )

    @property
    def is_aligned(self) -> bool:
        """Whether codes can be loaded as 32-bit words."""
        return self.codes_base % 4 == 0 and self.codes_stride % 4 == 0

    @property
    def codes(self) -> torch.Tensor:
        """The same bytes as the words in which codes are loaded."""
        size = 4 if self.is_aligned else 2
        whole = self.data[: self.data.numel() // size * size]
        return whole.view(torch.int32 if self.is_aligned else torch.uint16)

    @property
    def fields(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the codes and of the headers, uint8 [blocks, bytes of one block's]."""
        num_blocks = math.prod(self.shape) // self.quant.block_size
        codes_bytes = self.format.codes_bytes
        sizes = codes_bytes, self.quant.block_bytes - codes_bytes
        strides = self.codes_stride, self.header_stride
        start = self.data.storage_offset()
        bases = start + self.codes_base, start + self.header_base
        codes, header = (
            self.data.as_strided((num_blocks, size), (stride, 1), base)
            for size, stride, base in zip(sizes, strides, bases, strict=True)
        )
        return codes, header

    @property
    def halves(self) -> torch.Tensor:
        """The same bytes as float16, for the scales."""
        return self.data.view(torch.float16)


def block_layout(quant: QuantFormat, num_blocks: int, is_apart: bool) -> tuple[int, int, int, int]:
    """codes_base, codes_stride, header_base and header_stride of so many blocks."""
    decoded = DECODED[quant.name]
    codes_bytes, header_bytes = decoded.codes_bytes, quant.block_bytes - decoded.codes_bytes
    if is_apart:
        return 0, codes_bytes, num_blocks * codes_bytes, header_bytes
    if decoded.header_first:
        return header_bytes, quant.block_bytes, 0, quant.block_bytes
    return 0, quant.block_bytes, codes_bytes, quant.block_bytes


def over_blocks(
    blocks: torch.Tensor, quant: QuantFormat | str, shape: Sequence[int]
) -> QuantisedMatrix:
    """Sees uint8 GGUF blocks on a GPU (contiguous, any shape) as a matrix; copies nothing.

    Raises KeyError for a format that is not in SUPPORTED.
    """
    return _over(blocks.reshape(-1), by_name(quant) if isinstance(quant, str) else quant, shape)


def upload(*stored: StoredTensor, device: torch.device | str) -> QuantisedMatrix:
    """Copies a tensor to `device`; several of one format and width are stacked, row after row. On
    the GPU it takes 64 MB more than the bytes stored, for a moment.

    Raises KeyError for a format that is not in SUPPORTED.
    """
    quant, cols = stored[0].quant, stored[0].shape[-1]
    assert all(part.quant is quant and part.shape[-1] == cols for part in stored), stored
    shape = stored[0].shape
    if len(stored) > 1:
        shape = (sum(math.prod(part.shape[:-1]) for part in stored), cols)
    data = torch.empty(sum(part.num_bytes for part in stored), dtype=torch.uint8, device=device)
    matrix = _over(data, quant, shape, is_apart=quant.block_bytes % 16 != 0)
    first = 0
    for part in stored:
        for piece in part.as_torch().view(-1, quant.block_bytes).split(_UPLOAD_BYTES // 256):
            blocks = over_blocks(piece.to(device), quant, (len(piece), quant.block_size))
            for target, source in zip(matrix.fields, blocks.fields, strict=True):
                target[first : first + len(piece)] = source
            first += len(piece)
    return matrix


def apart(matrix: QuantisedMatrix) -> QuantisedMatrix:
    """A copy with the codes of all blocks first and their headers behind."""
    return _copy(matrix, is_apart=True)


def in_blocks(matrix: QuantisedMatrix) -> torch.Tensor:
    """A copy as GGUF bytes, uint8 [blocks, block_bytes], from either layout."""
    return _copy(matrix, is_apart=False).data.view(-1, matrix.quant.block_bytes)


def _copy(matrix: QuantisedMatrix, is_apart: bool) -> QuantisedMatrix:
    data = matrix.data.new_empty(matrix.quant.num_bytes(math.prod(matrix.shape)))
    copy = _over(data, matrix.quant, matrix.shape, is_apart)
    for target, source in zip(copy.fields, matrix.fields, strict=True):
        target.copy_(source)
    return copy


def _over(
    data: torch.Tensor, quant: QuantFormat, shape: Sequence[int], is_apart: bool = False
) -> QuantisedMatrix:
    num_blocks = math.prod(shape) // quant.block_size
    assert data.numel() == num_blocks * quant.block_bytes, (data.shape, quant.name, shape)
    return QuantisedMatrix(data, quant, tuple(shape), *block_layout(quant, num_blocks, is_apart))

"""A quantised matrix to bfloat16, whole: what prefill multiplies with, and the simplest kernel."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.decode import low_weight
from hybrid_k2.kernels.matrix import QuantisedMatrix
from hybrid_k2.kernels.tiles import load_tile

_ROWS, _UNITS = 4, 32


@triton.jit
def _dequantise(
    data,
    halves,
    out,
    codes_base,
    header_base,
    num_rows,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * UNITS
    column = first * 16 + tl.arange(0, UNITS * 16)
    inside = (row < num_rows)[:, None] & (column < UNITS_PER_ROW * 16)[None, :]
    row = tl.minimum(row, num_rows - 1).to(tl.int64)[:, None]
    block = row * (UNITS_PER_ROW // UNITS_PER_BLOCK)
    low, high = load_tile(
        data + codes_base + block * CODES_STRIDE,
        data + header_base + block * HEADER_STRIDE,
        halves + header_base // 2 + block * (HEADER_STRIDE // 2),
        first,
        decode,
        UNITS_PER_ROW,
        UNITS_PER_BLOCK,
        CODES_STRIDE,
        HEADER_STRIDE,
        HAS_OFFSET,
        ROWS,
        UNITS,
    )
    place = out + row * (UNITS_PER_ROW * 32) + low_weight(column, INTERLEAVED)[None, :]
    tl.store(place, low.to(out.dtype.element_ty), mask=inside)
    tl.store(place + 16 * INTERLEAVED, high.to(out.dtype.element_ty), mask=inside)


def dequantise(matrix: QuantisedMatrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """bfloat16 of matrix.shape on the matrix's device, or `out` (contiguous, any float type) filled
    with as many weights.
    """
    if out is None:
        out = torch.empty(matrix.shape, dtype=torch.bfloat16, device=matrix.data.device)
    assert out.is_contiguous() and out.numel() == math.prod(matrix.shape), (out.shape, matrix.shape)
    num_rows = math.prod(matrix.shape[:-1])
    grid = (triton.cdiv(num_rows, _ROWS), triton.cdiv(matrix.units_per_row, _UNITS))
    _dequantise[grid](
        *(matrix.data, matrix.halves, out),
        *(matrix.codes_base, matrix.header_base, num_rows),
        **matrix.constants,
        ROWS=_ROWS,
        UNITS=_UNITS,
    )
    return out

"""A quantised matrix to bfloat16, whole: what prefill multiplies with, and the simplest kernel."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.decode import low_run, values_of
from hybrid_k2.kernels.matrix import QuantisedMatrix

_UNITS = 128


@triton.jit
def _dequantise(
    codes,
    header,
    halves,
    out,
    codes_base,
    header_base,
    num_units,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Rows do not matter: a block follows the other, and so do a row's weights the row before."""
    CODE_BYTES: tl.constexpr = 4 if ALIGNED else 2
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    inside = (unit < num_units)[:, None]
    unit = tl.minimum(unit, num_units - 1)
    block = unit // UNITS_PER_BLOCK
    low, high, low_scale, high_scale, low_offset, high_offset = decode(
        codes + codes_base // CODE_BYTES + block * (CODES_STRIDE // CODE_BYTES),
        header + header_base + block * HEADER_STRIDE,
        halves + header_base // 2 + block * (HEADER_STRIDE // 2),
        (unit % UNITS_PER_BLOCK).to(tl.int32),
        ALIGNED,
    )
    low, high = values_of(low) * low_scale[:, None], values_of(high) * high_scale[:, None]
    if HAS_OFFSET:
        low, high = low - low_offset[:, None], high - high_offset[:, None]
    place = out + low_run(unit, INTERLEAVED)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(place, low.to(out.dtype.element_ty), mask=inside)
    tl.store(place + 16 * INTERLEAVED, high.to(out.dtype.element_ty), mask=inside)


def dequantise(matrix: QuantisedMatrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """bfloat16 of matrix.shape on the matrix's device, or `out` (contiguous, any float type) filled
    with as many weights.
    """
    if out is None:
        out = torch.empty(matrix.shape, dtype=torch.bfloat16, device=matrix.data.device)
    assert out.is_contiguous() and out.numel() == math.prod(matrix.shape), (out.shape, matrix.shape)
    num_units = math.prod(matrix.shape) // 32
    constants = matrix.constants | {"UNITS_PER_ROW": 0}  # one kernel for matrices of all widths
    _dequantise[(triton.cdiv(num_units, _UNITS),)](
        *(matrix.codes, matrix.data, matrix.halves, out),
        *(matrix.codes_base, matrix.header_base, num_units),
        **constants,
        UNITS=_UNITS,
    )
    return out

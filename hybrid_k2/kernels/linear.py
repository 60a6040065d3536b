"""y = W x with W quantised in VRAM: a few tokens straight from the blocks, many through bfloat16.

A few: 16-bit activations meet the stored codes in integer arithmetic, exact but for the rounding of
the activations (products.py). Many: dequantised in pieces for torch's matmul. Knows no modules.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.dequantise import dequantise
from hybrid_k2.kernels.fixed_point import FixedPoint, to_fixed_point
from hybrid_k2.kernels.matrix import QuantisedMatrix
from hybrid_k2.kernels.products import row_products

MAX_TOKENS = 32  # in steps of 8; beyond, writing and reading bfloat16 weights costs less
_STEP_TOKENS = 8
_SCRATCH_BYTES = 256 << 20


@triton.jit
def _linear(
    codes,
    header,
    halves,
    x_codes,
    x_scales,
    x_sums,
    out,
    codes_base,
    header_base,
    num_rows,
    num_tokens,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    UNITS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    CODE_BYTES: tl.constexpr = 4 if ALIGNED else 2
    K: tl.constexpr = UNITS_PER_ROW * 32
    matrix, num_stacked = tl.program_id(1), tl.num_programs(1)
    first_row = tl.program_id(0) * (ROWS * LANES // UNITS)
    sums = row_products(
        codes + codes_base // CODE_BYTES,
        header + header_base,
        halves + header_base // 2,
        matrix.to(tl.int64) * num_rows * (UNITS_PER_ROW // UNITS_PER_BLOCK),
        num_rows - 1,
        first_row,
        x_codes + matrix * (K // 2),
        x_scales + matrix * (K // 32),
        x_sums + matrix * (K // 16),
        num_tokens - 1,
        num_stacked,
        decode,
        UNITS_PER_ROW,
        UNITS_PER_BLOCK,
        CODES_STRIDE,
        HEADER_STRIDE,
        INTERLEAVED,
        HAS_OFFSET,
        ALIGNED,
        ROWS,
        LANES,
        UNITS,
        TOKENS,
    )
    for t in tl.static_range(TOKENS):
        for i in tl.static_range(ROWS):
            row = first_row + i * (LANES // UNITS) + tl.arange(0, LANES // UNITS)
            place = out + (t * num_stacked + matrix) * num_rows + row
            tl.store(place, sums[t * ROWS + i], mask=(row < num_rows) & (t < num_tokens))


def quantised_linear(
    x: torch.Tensor | FixedPoint, matrix: QuantisedMatrix, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x: [T, cols] float32 or bfloat16, last dimension contiguous; [T, S, cols] for a stack.
    Several matrices that take the same x may share its to_fixed_point, for up to MAX_TOKENS tokens.

    Returns float32 [T, rows], or [T, S, rows], on the matrix's device.
    """
    num_tokens = x.shape[0]
    shape = (num_tokens, *matrix.shape[:-1])
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=matrix.data.device)
    expected = (num_tokens, *matrix.shape[:-2], matrix.shape[-1])
    assert tuple(x.shape) == expected, (x.shape, expected)
    assert out.shape == shape and out.is_contiguous(), (out.shape, out.stride())
    if num_tokens > MAX_TOKENS:
        assert isinstance(x, torch.Tensor), "a FixedPoint of more than MAX_TOKENS tokens"
        return _many_tokens(x, matrix, out)
    fixed = x if isinstance(x, FixedPoint) else to_fixed_point(x)
    num_stacked, num_rows = math.prod(matrix.shape[:-2]), matrix.shape[-2]
    for first in range(0, num_tokens, _STEP_TOKENS):
        step = min(_STEP_TOKENS, num_tokens - first)
        vectors = slice(first * num_stacked, (first + step) * num_stacked)
        tile = linear_tile(num_rows * num_stacked, matrix.units_per_row, step)
        rows_of_program = tile["ROWS"] * tile["LANES"] // tile["UNITS"]
        _linear[(triton.cdiv(num_rows, rows_of_program), num_stacked)](
            *(matrix.codes, matrix.data, matrix.halves),
            *(fixed.codes[vectors], fixed.scales[vectors], fixed.sums[vectors]),
            *(out[first : first + step], matrix.codes_base, matrix.header_base, num_rows, step),
            **matrix.constants,
            **tile,
        )
    return out


def linear_tile(num_rows: int, units_per_row: int, num_tokens: int) -> dict[str, int]:
    """What a program takes on: for one token near the best of twenty on K2's shapes (H200)."""
    num_warps = 4 if num_tokens == 1 and units_per_row >= 128 else 1
    rows = 2 if num_tokens == 1 and (num_warps == 4 or num_rows < 10_000) else 4
    return {
        "ROWS": rows,
        "LANES": 32 * num_warps,
        "UNITS": min(32 * num_warps, triton.next_power_of_2(units_per_row)),
        "TOKENS": triton.next_power_of_2(num_tokens),
        "num_warps": num_warps,
    }


def _many_tokens(x: torch.Tensor, matrix: QuantisedMatrix, out: torch.Tensor) -> torch.Tensor:
    x = x.to(torch.bfloat16)
    if len(matrix.shape) == 3:  # k_b and v_b: 17 MB
        weights = dequantise(matrix).transpose(1, 2)  # [S, cols, rows]
        out.copy_(torch.bmm(x.transpose(0, 1), weights).transpose(0, 1))
        return out
    step = max(1, _SCRATCH_BYTES // (2 * matrix.shape[-1]))
    for first in range(0, matrix.shape[0], step):
        rows = slice(first, min(first + step, matrix.shape[0]))
        out[:, rows] = torch.nn.functional.linear(x, dequantise(matrix.rows(rows)))
    return out

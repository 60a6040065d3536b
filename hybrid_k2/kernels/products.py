"""Inner products of rows of blocks with a few activation vectors, inside a kernel.

A vector of LANES units is spread over the threads, each of which owns one unit: 16 bytes of codes
in registers, met by every token's 16-bit activations, summed in integers, scaled once. Nothing goes
through shared memory. Knows no launches: linear.py and experts.py call it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid_k2.kernels.decode import low_run
from hybrid_k2.kernels.intrinsics import dot4


@triton.jit
def row_products(
    codes,
    header,
    halves,
    first_block,
    last_row,
    first_row,
    x_codes,
    x_scales,
    x_sums,
    last_token,
    x_stride,
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
    """A tuple of TOKENS * ROWS products, of token 0 first: float32 [LANES / UNITS] each, row i of
    ROWS being rows first_row + i * LANES / UNITS on.

    codes, header, halves: where block 0 of the matrix has its codes (uint16, or int32 if ALIGNED)
    and its header (as bytes, as float16). first_block: of row 0. Rows beyond last_row and tokens
    beyond last_token repeat the last. x_codes, x_scales, x_sums: of token 0, as in FixedPoint;
    x_stride: vectors from one token to the next. UNITS: at most LANES, the units taken at once of a
    row.
    """
    K: tl.constexpr = UNITS_PER_ROW * 32
    CODE_WORDS: tl.constexpr = CODES_STRIDE // (4 if ALIGNED else 2)
    lane = tl.arange(0, LANES)
    word = tl.arange(0, 4)[None, :]
    totals = ()
    for _ in tl.static_range(TOKENS * ROWS):
        totals += (tl.zeros([LANES], tl.float32),)
    for first in range(0, UNITS_PER_ROW, UNITS):
        unit = first + lane % UNITS
        inside = unit < UNITS_PER_ROW
        if UNITS_PER_ROW % UNITS:
            unit = tl.minimum(unit, UNITS_PER_ROW - 1)
        decoded = ()
        for i in tl.static_range(ROWS):
            row = tl.minimum(first_row + i * (LANES // UNITS) + lane // UNITS, last_row)
            if LANES == UNITS:
                row = tl.minimum(first_row + i, last_row)
            block = first_block + row.to(tl.int64) * (UNITS_PER_ROW // UNITS_PER_BLOCK)
            in_row = unit // UNITS_PER_BLOCK
            decoded += (
                decode(
                    codes + block * CODE_WORDS + in_row * CODE_WORDS,
                    header + block * HEADER_STRIDE + in_row * HEADER_STRIDE,
                    halves + block * (HEADER_STRIDE // 2) + in_row * (HEADER_STRIDE // 2),
                    unit % UNITS_PER_BLOCK,
                    ALIGNED,
                ),
            )
        run = low_run(unit, INTERLEAVED)
        grown = ()
        for t in tl.static_range(TOKENS):
            vector = tl.minimum(t, last_token) * x_stride
            x = x_codes + vector * (K // 2) + run[:, None] * 4 + word
            x_low, x_low_next = tl.load(x), tl.load(x + K // 4)
            x_high = tl.load(x + 4 * INTERLEAVED)
            x_high_next = tl.load(x + 4 * INTERLEAVED + K // 4)
            low_x_scale = tl.load(x_scales + vector * (K // 32) + run // 2)
            high_x_scale = low_x_scale
            if INTERLEAVED > 1:
                high_x_scale = tl.load(x_scales + vector * (K // 32) + (run + INTERLEAVED) // 2)
            if UNITS_PER_ROW % UNITS:
                low_x_scale = tl.where(inside, low_x_scale, 0)
                high_x_scale = tl.where(inside, high_x_scale, 0)
            if HAS_OFFSET:
                low_sum = tl.load(x_sums + vector * (K // 16) + run)
                high_sum = tl.load(x_sums + vector * (K // 16) + run + INTERLEAVED)
                if UNITS_PER_ROW % UNITS:
                    low_sum = tl.where(inside, low_sum, 0)
                    high_sum = tl.where(inside, high_sum, 0)
            for i in tl.static_range(ROWS):
                low, high, low_scale, high_scale, low_offset, high_offset = decoded[i]
                total = totals[t * ROWS + i]
                none = tl.zeros([LANES, 4], tl.int32)
                products = dot4(low, x_low, x_low_next, none)
                if INTERLEAVED == 1:  # both runs have one scale, and so have their activations
                    products = dot4(high, x_high, x_high_next, products)
                else:
                    others = dot4(high, x_high, x_high_next, none)
                    total += tl.sum(others, 1).to(tl.float32) * (high_scale * high_x_scale)
                total += tl.sum(products, 1).to(tl.float32) * (low_scale * low_x_scale)
                if HAS_OFFSET:
                    total -= low_offset * low_sum + high_offset * high_sum
                grown += (total,)
        totals = grown
    sums = ()
    for i in tl.static_range(TOKENS * ROWS):
        sums += (tl.sum(totals[i].reshape(LANES // UNITS, UNITS), 1),)
    return sums

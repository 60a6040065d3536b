"""A tile of a quantised matrix inside a kernel: some rows by some units, decoded.

Turns rows and units into pointers, calls the format's decode function and applies the scales; all
kernels over quantised weights share it. Knows no format.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid_k2.kernels.decode import over_columns


@triton.jit
def load_tile(
    codes,
    header,
    halves,
    first,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Weights of ROWS rows and UNITS units from unit `first` on, float32 [ROWS, 16 * UNITS] of the
    low and of the high runs; what lies beyond the row's end repeats its last unit.

    codes, header, halves: pointers [ROWS, 1] to the first block of each row.
    """
    unit = first + tl.arange(0, UNITS)[None, :]
    column = first * 16 + tl.arange(0, UNITS * 16)[None, :]
    if UNITS_PER_ROW % UNITS:
        unit = tl.minimum(unit, UNITS_PER_ROW - 1)
        column = tl.where(
            column < UNITS_PER_ROW * 16, column, UNITS_PER_ROW * 16 - 16 + column % 16
        )
    block = unit // UNITS_PER_BLOCK
    low, high, low_scale, high_scale, low_offset, high_offset = decode(
        codes + column // (16 * UNITS_PER_BLOCK) * CODES_STRIDE,
        column % (16 * UNITS_PER_BLOCK),
        header + block * HEADER_STRIDE,
        halves + block * (HEADER_STRIDE // 2),
        unit % UNITS_PER_BLOCK,
    )
    low = low.to(tl.float32) * over_columns(low_scale, ROWS, UNITS)
    high = high.to(tl.float32) * over_columns(high_scale, ROWS, UNITS)
    if HAS_OFFSET:
        low -= over_columns(low_offset, ROWS, UNITS)
        high -= over_columns(high_offset, ROWS, UNITS)
    return low, high

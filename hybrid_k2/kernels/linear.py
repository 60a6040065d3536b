"""y = W x with W quantised in VRAM: a few tokens straight from the blocks, many through bfloat16.

Up to 16 tokens: a tile of the matrix is decoded to bfloat16 once and multiplied for all of them by
the tensor cores, which cost nothing beside the decoding; columns are split over programs until the
GPU is full, and the last program of a row to arrive adds the parts in their order, so that results
do not depend on timing. More tokens: dequantised in pieces for torch's matmul. Knows no modules.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.decode import low_weight
from hybrid_k2.kernels.dequantise import dequantise
from hybrid_k2.kernels.matrix import QuantisedMatrix
from hybrid_k2.kernels.tiles import load_tile

MAX_TOKENS = 16  # of the kernel that reads blocks
_SCRATCH_BYTES = 256 << 20
_ROWS, _UNITS, _WARPS, _STAGES = 64, 8, 4, 4
_PROGRAMS = 800  # about six for each of an H200's 132 multiprocessors


@triton.jit
def product(
    codes,
    header,
    halves,
    x,
    first_unit,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    NUM_UNITS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows times tokens over NUM_UNITS units from first_unit on: float32 [ROWS, TOKENS].

    codes, header, halves: pointers [ROWS, 1] to each row's first block. x: pointers [1, TOKENS].
    """
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for done in tl.range(0, NUM_UNITS, UNITS, num_stages=STAGES):
        first = first_unit + done
        low, high = load_tile(
            codes,
            header,
            halves,
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
        column = first * 16 + tl.arange(0, UNITS * 16)[:, None]
        place = x + low_weight(column, INTERLEAVED)
        if UNITS_PER_ROW % UNITS or UNITS_PER_ROW % NUM_UNITS:
            inside = column < UNITS_PER_ROW * 16
            x_low = tl.load(place, mask=inside, other=0)
            x_high = tl.load(place + 16 * INTERLEAVED, mask=inside, other=0)
        else:
            x_low = tl.load(place)
            x_high = tl.load(place + 16 * INTERLEAVED)
        total = tl.dot(low.to(tl.bfloat16), x_low.to(tl.bfloat16), total)
        total = tl.dot(high.to(tl.bfloat16), x_high.to(tl.bfloat16), total)
    return total


@triton.jit
def _few_tokens(
    data,
    halves,
    x,
    out,
    parts,
    arrivals,
    codes_base,
    header_base,
    num_rows,
    num_tokens,
    x_token_stride,
    x_stride,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    NUM_UNITS: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(1)
    matrix, num_stacked = tl.program_id(2), tl.num_programs(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    stacked = matrix.to(tl.int64) * num_rows + tl.minimum(row, num_rows - 1)
    block = (stacked * (UNITS_PER_ROW // UNITS_PER_BLOCK))[:, None]
    total = product(
        data + codes_base + block * CODES_STRIDE,
        data + header_base + block * HEADER_STRIDE,
        halves + header_base // 2 + block * (HEADER_STRIDE // 2),
        x + matrix * x_stride + tl.minimum(token, num_tokens - 1)[None, :] * x_token_stride,
        split * NUM_UNITS,
        decode,
        UNITS_PER_ROW,
        UNITS_PER_BLOCK,
        CODES_STRIDE,
        HEADER_STRIDE,
        INTERLEAVED,
        HAS_OFFSET,
        ROWS,
        UNITS,
        NUM_UNITS,
        TOKENS,
        STAGES,
    )
    inside = (row < num_rows)[:, None] & (token < num_tokens)[None, :]
    place = (token[None, :] * num_stacked + matrix) * num_rows + row[:, None]
    if SPLITS == 1:
        tl.store(out + place, total, mask=inside)
    else:
        part_size = num_tokens * num_stacked * num_rows
        tl.store(parts + split * part_size + place, total, mask=inside)
        tl.debug_barrier()  # every thread's part is written before this program counts as arrived
        arrival = arrivals + matrix * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(arrival, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros([ROWS, TOKENS], tl.float32)
            for other in tl.static_range(SPLITS):
                total += tl.load(parts + other * part_size + place, inside, 0, cache_modifier=".cg")
            tl.store(out + place, total, mask=inside)
            tl.store(arrival, 0)  # ready for the next launch


def quantised_linear(
    x: torch.Tensor, matrix: QuantisedMatrix, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x: [T, cols] float32 or bfloat16, last dimension contiguous; [T, S, cols] for a stack.

    Returns float32 [T, rows], or [T, S, rows], on the matrix's device; products are of bfloat16.
    One matrix must not be used on two streams at the same time.
    """
    num_tokens = x.shape[0]
    shape = (num_tokens, *matrix.shape[:-1])
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=matrix.data.device)
    assert x.shape == (num_tokens, *matrix.shape[:-2], matrix.shape[-1]), (x.shape, matrix.shape)
    assert out.shape == shape and out.is_contiguous() and x.stride(-1) == 1, (out.shape, x.stride())
    if num_tokens > MAX_TOKENS:
        return _many_tokens(x, matrix, out)
    num_stacked, num_rows = math.prod(matrix.shape[:-2]), matrix.shape[-2]
    row_programs = triton.cdiv(num_rows, _ROWS)
    num_splits, split_units = _split(row_programs * num_stacked, matrix.units_per_row)
    parts = out if num_splits == 1 else out.new_empty(num_splits, *shape)
    _few_tokens[(row_programs, num_splits, num_stacked)](
        *(matrix.data, matrix.halves, x, out, parts, matrix.arrivals),
        *(matrix.codes_base, matrix.header_base, num_rows, num_tokens),
        *(x.stride(0), x.stride(1) if num_stacked > 1 else 0),
        **matrix.constants,
        ROWS=_ROWS,
        UNITS=_UNITS,
        NUM_UNITS=split_units,
        SPLITS=num_splits,
        TOKENS=8 if num_tokens <= 8 else MAX_TOKENS,
        STAGES=_STAGES,
        num_warps=_WARPS,
    )
    return out


def _split(num_programs: int, num_units: int) -> tuple[int, int]:
    """Into how many parts of how many units each to split rows, for about _PROGRAMS programs."""
    num_tiles = triton.cdiv(num_units, _UNITS)
    tiles_per_split = max(1, num_tiles * num_programs // _PROGRAMS)
    return triton.cdiv(num_tiles, tiles_per_split), tiles_per_split * _UNITS


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

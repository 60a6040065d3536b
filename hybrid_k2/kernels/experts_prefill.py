"""The routed experts of many tokens, of those that lie on the GPU: blocks are decoded in registers
on their way to the tensor cores, so no bfloat16 copy of an expert is ever written.

Hits are sorted by expert and cut into tiles of tokens; each tile's programs decode the rows that
they multiply. Sums over a token's experts are atomic additions, so their order, and with it the
last bit of a float32, may differ from run to run. Knows no routing and no placement.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.decode import low_run, values_of
from hybrid_k2.kernels.expert_table import ExpertTable

_TOKENS, _ROWS, _UNITS, _WARPS = 64, 128, 2, 8


@triton.jit
def _scaled(words, scale, offset, HAS_OFFSET: tl.constexpr, ROWS: tl.constexpr):
    """Words [R * U, 4] of units, row after row -> bfloat16 weights [R, 16 U]."""
    weights = values_of(words) * scale[:, None]
    if HAS_OFFSET:
        weights -= offset[:, None]
    return weights.to(tl.bfloat16).reshape(ROWS, words.shape[0] // ROWS * 16)


@triton.jit
def _tile_product(
    total,
    x_low,
    x_high,
    codes,
    header,
    halves,
    offset,
    first_row,
    last_row,
    first_unit,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_BASE: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_BASE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """total [TOKENS, ROWS] + x times the transposed weights of ROWS rows and UNITS units."""
    CODE_BYTES: tl.constexpr = 4 if ALIGNED else 2
    place = tl.arange(0, ROWS * UNITS)
    row = tl.minimum(first_row + place // UNITS, last_row)
    unit = tl.minimum(first_unit + place % UNITS, UNITS_PER_ROW - 1)
    block = row * (UNITS_PER_ROW // UNITS_PER_BLOCK) + unit // UNITS_PER_BLOCK
    offset = tl.multiple_of(offset, 16)
    low, high, low_scale, high_scale, low_offset, high_offset = decode(
        codes + (offset + CODES_BASE) // CODE_BYTES + block * (CODES_STRIDE // CODE_BYTES),
        header + offset + HEADER_BASE + block * HEADER_STRIDE,
        halves + (offset + HEADER_BASE) // 2 + block * (HEADER_STRIDE // 2),
        unit % UNITS_PER_BLOCK,
        ALIGNED,
    )
    low = _scaled(low, low_scale, low_offset, HAS_OFFSET, ROWS)
    high = _scaled(high, high_scale, high_offset, HAS_OFFSET, ROWS)
    total = tl.dot(x_low, tl.trans(low), total)
    return tl.dot(x_high, tl.trans(high), total)


@triton.jit
def _columns(first_unit, UNITS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The weights of a row that the columns of a tile's low runs are, [16 U]."""
    column = tl.arange(0, UNITS * 16)
    return low_run(first_unit + column // 16, INTERLEAVED) * 16 + column % 16


@triton.jit
def _gate_up(
    x,
    hits,
    tile_expert,
    tile_first,
    tile_last,
    gate_codes,
    gate_header,
    gate_halves,
    gate_offsets,
    up_codes,
    up_header,
    up_halves,
    up_offsets,
    hidden,
    num_rows,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_BASE: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_BASE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    HITS_PER_TOKEN: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    expert = tl.load(tile_expert + tl.program_id(1))
    if expert >= 0:
        place = tl.load(tile_first + tl.program_id(1)) + tl.arange(0, TOKENS)
        inside = place < tl.load(tile_last + tl.program_id(1))
        token = tl.load(hits + place, mask=inside, other=0) // HITS_PER_TOKEN
        first_row = tl.program_id(0) * ROWS
        gate = tl.zeros([TOKENS, ROWS], tl.float32)
        up = tl.zeros([TOKENS, ROWS], tl.float32)
        for unit in range(0, UNITS_PER_ROW, UNITS):
            column = _columns(unit, UNITS, INTERLEAVED)[None, :]
            x_row = x + token.to(tl.int64)[:, None] * (UNITS_PER_ROW * 32)
            used = inside[:, None] & (column < UNITS_PER_ROW * 32)
            x_low = tl.load(x_row + column, mask=used, other=0)
            x_high = tl.load(x_row + column + 16 * INTERLEAVED, mask=used, other=0)
            gate = _tile_product(
                *(gate, x_low, x_high, gate_codes, gate_header, gate_halves),
                *(tl.load(gate_offsets + expert), first_row, num_rows - 1, unit),
                *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
                *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
                *(HAS_OFFSET, ALIGNED, ROWS, UNITS),
            )
            up = _tile_product(
                *(up, x_low, x_high, up_codes, up_header, up_halves),
                *(tl.load(up_offsets + expert), first_row, num_rows - 1, unit),
                *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
                *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
                *(HAS_OFFSET, ALIGNED, ROWS, UNITS),
            )
        value = gate / (1 + tl.exp(-gate)) * up
        row = first_row + tl.arange(0, ROWS)
        out = hidden + place.to(tl.int64)[:, None] * num_rows + row[None, :]
        stored = inside[:, None] & (row < num_rows)[None, :]
        tl.store(out, value.to(hidden.dtype.element_ty), mask=stored)


@triton.jit
def _down(
    hidden,
    hits,
    weights,
    tile_expert,
    tile_first,
    tile_last,
    codes,
    header,
    halves,
    offsets,
    out,
    num_rows,
    decode: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    UNITS_PER_BLOCK: tl.constexpr,
    CODES_BASE: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    HEADER_BASE: tl.constexpr,
    HEADER_STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    HITS_PER_TOKEN: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    expert = tl.load(tile_expert + tl.program_id(1))
    if expert >= 0:
        place = tl.load(tile_first + tl.program_id(1)) + tl.arange(0, TOKENS)
        inside = place < tl.load(tile_last + tl.program_id(1))
        hit = tl.load(hits + place, mask=inside, other=0)
        first_row = tl.program_id(0) * ROWS
        total = tl.zeros([TOKENS, ROWS], tl.float32)
        for unit in range(0, UNITS_PER_ROW, UNITS):
            column = _columns(unit, UNITS, INTERLEAVED)[None, :]
            x_row = hidden + place.to(tl.int64)[:, None] * (UNITS_PER_ROW * 32)
            used = inside[:, None] & (column < UNITS_PER_ROW * 32)
            x_low = tl.load(x_row + column, mask=used, other=0)
            x_high = tl.load(x_row + column + 16 * INTERLEAVED, mask=used, other=0)
            total = _tile_product(
                *(total, x_low, x_high, codes, header, halves),
                *(tl.load(offsets + expert), first_row, num_rows - 1, unit),
                *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
                *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
                *(HAS_OFFSET, ALIGNED, ROWS, UNITS),
            )
        total *= tl.load(weights + hit, mask=inside, other=0)[:, None]
        row = first_row + tl.arange(0, ROWS)
        y = out + (hit // HITS_PER_TOKEN).to(tl.int64)[:, None] * num_rows + row[None, :]
        tl.atomic_add(y, total, mask=inside[:, None] & (row < num_rows)[None, :], sem="relaxed")


def prefill_experts(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    table: ExpertTable,
    out: torch.Tensor,
) -> torch.Tensor:
    """Adds sum_k weights[t, k] * down_e(silu(gate_e(x_t)) * up_e(x_t)) over the e on the GPU to
    out.

    x: [T, hidden] bfloat16, contiguous. expert_ids: [T, K] int32, -1 skips. weights: [T, K]
    float32. out: [T, hidden] float32, contiguous, which is returned. Scratch: T * K * expert width
    bfloat16.
    """
    hits_per_token = expert_ids.shape[1]
    width, hidden_size = table.gate.shape
    assert x.dtype == torch.bfloat16 and x.is_contiguous() and weights.is_contiguous(), x.dtype
    assert out.is_contiguous() and out.dtype == torch.float32, (out.dtype, out.stride())
    hits, tiles = _sorted_hits(expert_ids, table.gate.offsets)
    hidden = torch.empty(hits.shape[0], width, dtype=x.dtype, device=x.device)
    constants = {
        "HITS_PER_TOKEN": hits_per_token,
        "TOKENS": _TOKENS,
        "ROWS": _ROWS,
        "UNITS": _UNITS,
        "num_warps": _WARPS,
    }
    num_tiles = tiles[0].shape[0]
    _gate_up[(triton.cdiv(width, _ROWS), num_tiles)](
        *(x, hits, *tiles, *table.gate.pointers, *table.up.pointers, hidden, width),
        **table.gate.constants,
        **constants,
    )
    _down[(triton.cdiv(hidden_size, _ROWS), num_tiles)](
        *(hidden, hits, weights, *tiles, *table.down.pointers, out, hidden_size),
        **table.down.constants,
        **constants,
    )
    return out


def _sorted_hits(
    expert_ids: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The numbers of all hits (token * K + k), those of one expert together, int32 [T * K], and the
    tiles of them: expert (-1: an unused tile), first hit and the end of the expert's, int32
    [tiles].

    No number leaves the GPU: there are as many tiles as any routing can need.
    """
    num_experts = offsets.shape[0]
    ids = expert_ids.flatten().long()
    is_here = (ids >= 0) & (offsets[ids.clamp_min(0)] >= 0)
    keys = torch.where(is_here, ids, num_experts)
    hits = keys.argsort(stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids.device)
    counts = counts.scatter_add_(0, keys, torch.ones_like(keys))[:num_experts]
    ends = counts.cumsum(0)
    tiles = (counts + _TOKENS - 1) // _TOKENS
    tile_ends = tiles.cumsum(0)
    num_tiles = keys.shape[0] // _TOKENS + min(num_experts, keys.shape[0])
    index = torch.arange(num_tiles, device=ids.device)
    expert = torch.searchsorted(tile_ends, index, right=True)
    known = expert.clamp_max(num_experts - 1)
    first = ends[known] - counts[known] + (index - tile_ends[known] + tiles[known]) * _TOKENS
    expert = torch.where(expert < num_experts, expert, -1)
    return hits.int(), (expert.int(), first.int(), ends[known].int())

"""The routed experts of a few tokens, of those that lie on the GPU: one launch for gate, up and
SiLU, one for down and the weighted sum.

Every (token, expert) hit is computed on its own, a token of a batch reading an expert that another
one reads too from the GPU's cache. Hits of experts that are elsewhere are skipped, on the device,
so the launches are the same whatever the routing. Knows no routing and no placement.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.expert_table import ExpertTable
from hybrid_k2.kernels.fixed_point import to_fixed_point
from hybrid_k2.kernels.products import row_products

_ROWS = 2


@triton.jit
def _expert_products(
    codes,
    header,
    halves,
    offset,
    last_row,
    first_row,
    x_codes,
    x_scales,
    x_sums,
    vector,
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
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    UNITS: tl.constexpr,
):
    """row_products of the matrix at byte `offset` with one vector of a FixedPoint."""
    K: tl.constexpr = UNITS_PER_ROW * 32
    CODE_BYTES: tl.constexpr = 4 if ALIGNED else 2
    offset = tl.multiple_of(offset, 16)
    return row_products(
        codes + offset // CODE_BYTES + CODES_BASE // CODE_BYTES,
        header + offset + HEADER_BASE,
        halves + offset // 2 + HEADER_BASE // 2,
        0,
        last_row,
        first_row,
        x_codes + vector * (K // 2),
        x_scales + vector * (K // 32),
        x_sums + vector * (K // 16),
        0,
        1,
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
        1,
    )


@triton.jit
def _gate_up(
    gate_codes,
    gate_header,
    gate_halves,
    gate_offsets,
    up_codes,
    up_header,
    up_halves,
    up_offsets,
    expert_ids,
    x_codes,
    x_scales,
    x_sums,
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
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    UNITS: tl.constexpr,
):
    hit = tl.program_id(1)
    expert = tl.load(expert_ids + hit)
    offset = tl.load(gate_offsets + tl.maximum(expert, 0))
    if (expert >= 0) & (offset >= 0):
        first_row = tl.program_id(0) * (ROWS * LANES // UNITS)
        gates = _expert_products(
            *(gate_codes, gate_header, gate_halves, offset, num_rows - 1, first_row),
            *(x_codes, x_scales, x_sums, hit // HITS_PER_TOKEN),
            *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
            *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
            *(INTERLEAVED, HAS_OFFSET, ALIGNED, ROWS, LANES, UNITS),
        )
        ups = _expert_products(
            *(up_codes, up_header, up_halves, tl.load(up_offsets + expert)),
            *(num_rows - 1, first_row),
            *(x_codes, x_scales, x_sums, hit // HITS_PER_TOKEN),
            *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
            *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
            *(INTERLEAVED, HAS_OFFSET, ALIGNED, ROWS, LANES, UNITS),
        )
        for i in tl.static_range(ROWS):
            row = first_row + i * (LANES // UNITS) + tl.arange(0, LANES // UNITS)
            value = gates[i] / (1 + tl.exp(-gates[i])) * ups[i]
            tl.store(hidden + hit * num_rows + row, value, mask=row < num_rows)


@triton.jit
def _down(
    codes,
    header,
    halves,
    offsets,
    expert_ids,
    weights,
    x_codes,
    x_scales,
    x_sums,
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
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    UNITS: tl.constexpr,
):
    token = tl.program_id(1)
    first_row = tl.program_id(0) * (ROWS * LANES // UNITS)
    totals = ()
    for _ in tl.static_range(ROWS):
        totals += (tl.zeros([LANES // UNITS], tl.float32),)
    for k in range(HITS_PER_TOKEN):
        hit = token * HITS_PER_TOKEN + k
        expert = tl.load(expert_ids + hit)
        offset = tl.load(offsets + tl.maximum(expert, 0))
        if (expert >= 0) & (offset >= 0):
            weight = tl.load(weights + hit)
            products = _expert_products(
                *(codes, header, halves, offset, num_rows - 1, first_row),
                *(x_codes, x_scales, x_sums, hit),
                *(decode, UNITS_PER_ROW, UNITS_PER_BLOCK),
                *(CODES_BASE, CODES_STRIDE, HEADER_BASE, HEADER_STRIDE),
                *(INTERLEAVED, HAS_OFFSET, ALIGNED, ROWS, LANES, UNITS),
            )
            grown = ()
            for i in tl.static_range(ROWS):
                grown += (totals[i] + weight * products[i],)
            totals = grown
    for i in tl.static_range(ROWS):
        row = first_row + i * (LANES // UNITS) + tl.arange(0, LANES // UNITS)
        tl.store(out + token * num_rows + row, totals[i], mask=row < num_rows)


def grouped_experts(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    table: ExpertTable,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum_k weights[t, k] * down_e(silu(gate_e(x_t)) * up_e(x_t)) over the e on the GPU.

    x: [T, hidden] float32 or bfloat16. expert_ids: [T, K] int32, -1 skips. weights: [T, K] float32.
    Returns `out`, or a new [T, hidden] float32; a token without a hit has zeros.
    """
    num_tokens, hits_per_token = expert_ids.shape
    width, hidden_size = table.gate.shape
    if out is None:
        out = torch.empty(num_tokens, hidden_size, dtype=torch.float32, device=x.device)
    assert expert_ids.is_contiguous() and weights.is_contiguous() and out.is_contiguous()
    # Zeros: what skipped hits leave alone is quantised below, and must be finite.
    hidden = torch.zeros(num_tokens * hits_per_token, width, device=x.device)
    fixed = to_fixed_point(x)
    tile = _tile(hidden_size // 32)
    rows_of_program = tile["ROWS"] * tile["LANES"] // tile["UNITS"]
    _gate_up[(triton.cdiv(width, rows_of_program), num_tokens * hits_per_token)](
        *(*table.gate.pointers, *table.up.pointers, expert_ids),
        *(fixed.codes, fixed.scales, fixed.sums, hidden, width),
        **table.gate.constants,
        HITS_PER_TOKEN=hits_per_token,
        **tile,
    )
    fixed = to_fixed_point(hidden)
    tile = _tile(width // 32)
    rows_of_program = tile["ROWS"] * tile["LANES"] // tile["UNITS"]
    _down[(triton.cdiv(hidden_size, rows_of_program), num_tokens)](
        *(*table.down.pointers, expert_ids, weights),
        *(fixed.codes, fixed.scales, fixed.sums, out, hidden_size),
        **table.down.constants,
        HITS_PER_TOKEN=hits_per_token,
        **tile,
    )
    return out


def _tile(units_per_row: int) -> dict[str, int]:
    num_warps = 4 if units_per_row >= 128 else 1
    lanes = 32 * num_warps
    units = min(lanes, triton.next_power_of_2(units_per_row))
    return {"ROWS": _ROWS, "LANES": lanes, "UNITS": units, "num_warps": num_warps}

"""Absorbed latent attention of one new token a sequence, over pages of cached latents.

All heads share the cached rows: a row is key (c and k_pe) and value (c) of every head. The pages of
a sequence are split over programs, each of which keeps a running softmax; a second kernel combines
the parts. The grid depends on the block table's shape alone and lengths are read on the device, so
a captured graph serves sequences of any length. Knows no projections: q is absorbed, the result is
still latent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.pages import PAGE_TOKENS, is_quantised, latent_width

_LOG2_E = 1.4426950408889634
_HEADS = 16  # of a program: a tensor core's tile
_TOKENS = 32  # of a step; two steps a page
_MAX_SPLITS = 32
_COMBINED_COLUMNS = 64  # of a program, for all splits of a head


@triton.jit
def _attend_split(
    q,
    pages,
    scales,
    block_table,
    lengths,
    parts,
    sums,
    scale,
    max_pages,
    q_sequence_stride,
    q_head_stride,
    NUM_HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUANTISED: tl.constexpr,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """parts: [B, heads, SPLITS, rank], normalised by the split's own sum of exponentials; sums:
    [B, heads, SPLITS], log2 of that sum, -inf for a split without tokens, whose part is not
    written.
    """
    split, sequence = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    place = (sequence * NUM_HEADS + head) * SPLITS + split
    length = tl.load(lengths + sequence)
    num_steps = tl.cdiv(length, TOKENS)
    steps_per_split = tl.cdiv(num_steps, SPLITS)
    first_step = split * steps_per_split
    last_step = tl.minimum(first_step + steps_per_split, num_steps)
    if first_step >= last_step:
        tl.store(sums + place, float("-inf"), mask=head < NUM_HEADS)
    else:
        query = q + sequence * q_sequence_stride + tl.minimum(head, NUM_HEADS - 1) * q_head_stride
        rank, rope, token = tl.arange(0, RANK), tl.arange(0, ROPE), tl.arange(0, TOKENS)
        q_c = tl.load(query[:, None] + rank[None, :])  # [HEADS, RANK]
        q_pe = tl.load(query[:, None] + RANK + rope[None, :])
        largest = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        mixed = tl.zeros([HEADS, RANK], tl.float32)
        for step in tl.range(first_step, last_step, num_stages=STAGES):
            start = step * TOKENS
            page = tl.load(block_table + sequence * max_pages + start // PAGE).to(tl.int64)
            row = page * PAGE + start % PAGE + token  # the page is ours as far as it reaches
            # Rows that nobody wrote may hold anything, NaN too, which a weight of zero would keep.
            visible = start + token < length
            place_of_row = pages + row[:, None] * WIDTH
            c = tl.load(place_of_row + rank[None, :], visible[:, None], 0).to(q_c.dtype)
            k_pe = tl.load(place_of_row + RANK + rope[None, :], visible[:, None], 0).to(q_c.dtype)
            score = tl.dot(q_c, tl.trans(c))
            score_pe = tl.dot(q_pe, tl.trans(k_pe))
            if QUANTISED:
                place_of_scales = scales + row * (WIDTH // 4) + (RANK + ROPE) // 4
                c_scale = tl.load(place_of_scales, visible, 0)
                pe_scale = tl.load(place_of_scales + 1, visible, 0)
                score = score * c_scale[None, :] + score_pe * pe_scale[None, :]
            else:
                score += score_pe
            score = tl.where(visible[None, :], score * scale, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(score, 1))
            shrink = tl.exp2(largest - new_largest)
            weight = tl.exp2(score - new_largest[:, None])
            total = total * shrink + tl.sum(weight, 1)
            if QUANTISED:
                weight *= c_scale[None, :]
            mixed = tl.dot(weight.to(c.dtype), c, mixed * shrink[:, None])
            largest = new_largest
        inside = head < NUM_HEADS
        part = parts + place.to(tl.int64)[:, None] * RANK + rank[None, :]
        tl.store(part, mixed / total[:, None], mask=inside[:, None])
        tl.store(sums + place, largest + tl.log2(total), mask=inside)


@triton.jit
def _combine_splits(
    parts,
    sums,
    out,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [B * heads, rank]: the parts' mean, weighted by their sums of exponentials."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK)
    log_sum = tl.load(sums + head * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
    largest = tl.max(log_sum)
    weight = tl.where(log_sum == float("-inf"), 0.0, tl.exp2(log_sum - largest))
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = parts + (head * SPLITS + split)[:, None] * RANK + column[None, :]
    mixed = tl.load(part, mask=(weight > 0)[:, None], other=0)
    total = tl.sum(weight)
    mixed = tl.sum(mixed * (weight / tl.where(total > 0, total, 1.0))[:, None], 0)
    tl.store(out + head * RANK + column, mixed.to(out.dtype.element_ty))


def mla_decode(
    q: torch.Tensor,
    pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    rank: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale * q k) c over the first lengths[b] rows of each sequence.

    q: [B, heads, latent] bfloat16, the last dimension contiguous. pages: [P, 64, latent] of q's
    dtype, or in 8 bits (pages.py). block_table: [B, max_pages] int32. lengths: [B] int32, the new
    token included; 0 skips the sequence, whose result is zero. rank: c's columns, a power of 2,
    like those of k_pe. Returns `out`, or a new [B, heads, rank] float32.
    """
    num_sequences, num_heads, latent = q.shape
    max_pages = block_table.shape[1]
    assert latent_width(pages) == latent and q.stride(2) == 1, (pages.shape, q.shape, q.stride())
    assert pages.is_contiguous() and block_table.is_contiguous(), block_table.stride()
    quantised = is_quantised(pages)
    if out is None:
        out = torch.empty(num_sequences, num_heads, rank, dtype=torch.float32, device=q.device)
    splits = min(_MAX_SPLITS, max_pages * PAGE_TOKENS // _TOKENS)
    parts = torch.empty(num_sequences, num_heads, splits, rank, device=q.device)
    sums = torch.empty(num_sequences, num_heads, splits, device=q.device)
    _attend_split[(splits, triton.cdiv(num_heads, _HEADS), num_sequences)](
        *(q, pages, pages.view(torch.float32) if quantised else pages),
        *(block_table, lengths, parts, sums),
        *(scale * _LOG2_E, max_pages, q.stride(0), q.stride(1)),
        NUM_HEADS=num_heads,
        RANK=rank,
        ROPE=latent - rank,
        WIDTH=pages.shape[2],
        QUANTISED=quantised,
        SPLITS=splits,
        PAGE=PAGE_TOKENS,
        HEADS=_HEADS,
        TOKENS=_TOKENS,
        STAGES=2,
        num_warps=4,
    )
    columns = min(rank, _COMBINED_COLUMNS)
    _combine_splits[(num_sequences * num_heads, rank // columns)](
        *(parts, sums, out),
        RANK=rank,
        COLUMNS=columns,
        SPLITS=splits,
        BLOCK=triton.next_power_of_2(splits),
    )
    return out

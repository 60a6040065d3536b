"""Rotation of queries and keys, and the write of a token's latent row into its page: one launch.

Positions rotate the pairs (2i, 2i + 1) as in model/rope.py: the angle is taken in float64, because
in float32 it is off by 0.008 radians at position 131,072. Owns no frequencies. Knows no sequences
beyond their row of page ids.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hybrid_k2.kernels.pages import PAGE_TOKENS, SCALE_BYTES, is_quantised

_TURN = tl.constexpr(2 * math.pi)


@triton.jit
def _rotated(x, position, inv_freq, factor, PAIRS: tl.constexpr):
    """The pairs at pointer x, turned: their even and their odd parts, float32 [PAIRS] each."""
    pair = tl.arange(0, PAIRS)
    turns = position.to(tl.float64) * tl.load(inv_freq + pair) / _TURN
    angle = ((turns - tl.floor(turns)) * _TURN).to(tl.float32)
    cos, sin = tl.cos(angle) * factor, tl.sin(angle) * factor
    even, odd = tl.load(x + 2 * pair).to(tl.float32), tl.load(x + 2 * pair + 1).to(tl.float32)
    return even * cos - odd * sin, even * sin + odd * cos


@triton.jit
def _code(x, scale):
    """The nearest whole number of scales, int8; nothing but zeros has a scale of zero."""
    return tl.floor(x / tl.where(scale == 0, 1.0, scale) + 0.5).to(tl.int8)


@triton.jit
def _rotate_and_cache(
    q,
    query,
    kv,
    norm_weight,
    inv_freq,
    pages,
    scales,
    block_table,
    positions,
    sequences,
    eps,
    factor,
    max_pages,
    q_token_stride,
    q_head_stride,
    query_token_stride,
    query_head_stride,
    NUM_HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUANTISED: tl.constexpr,
    HAS_SEQUENCES: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + token)
    if position >= 0:
        pair = tl.arange(0, PAIRS)
        if head < NUM_HEADS:
            pe = q + token * q_token_stride + head * q_head_stride + NOPE
            # Names of their own: a name must have one type in both branches.
            q_even, q_odd = _rotated(pe, position, inv_freq, factor, PAIRS)
            turned = query + token * query_token_stride + head * query_head_stride + RANK + 2 * pair
            tl.store(turned, q_even.to(query.dtype.element_ty))
            tl.store(turned + 1, q_odd.to(query.dtype.element_ty))
        else:
            sequence = token
            if HAS_SEQUENCES:
                sequence = tl.load(sequences + token)
            page = tl.load(block_table + sequence * max_pages + position // PAGE).to(tl.int64)
            row = page * PAGE + position % PAGE
            latent = kv + token * (RANK + 2 * PAIRS)
            column = tl.arange(0, BLOCK)
            inside = column < RANK
            c = tl.load(latent + column, mask=inside, other=0).to(tl.float32)
            c = c / tl.sqrt(tl.sum(c * c) / RANK + eps)
            c *= tl.load(norm_weight + column, mask=inside, other=0)
            even, odd = _rotated(latent + RANK, position, inv_freq, factor, PAIRS)
            place = pages + row * WIDTH
            if QUANTISED:
                c_scale = tl.max(tl.abs(c)) / 127
                pe_scale = tl.max(tl.maximum(tl.abs(even), tl.abs(odd))) / 127
                place_of_scales = scales + row * (WIDTH // 4) + (RANK + 2 * PAIRS) // 4
                tl.store(place_of_scales, c_scale)
                tl.store(place_of_scales + 1, pe_scale)
                c = _code(c, c_scale)
                even, odd = _code(even, pe_scale), _code(odd, pe_scale)
            tl.store(place + column, c.to(pages.dtype.element_ty), mask=inside)
            tl.store(place + RANK + 2 * pair, even.to(pages.dtype.element_ty))
            tl.store(place + RANK + 2 * pair + 1, odd.to(pages.dtype.element_ty))


def rotate_and_cache(
    q: torch.Tensor,
    query: torch.Tensor,
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    inv_freq: torch.Tensor,
    factor: float,
    pages: torch.Tensor,
    block_table: torch.Tensor,
    positions: torch.Tensor,
    sequences: torch.Tensor | None = None,
) -> None:
    """Rotates q's last columns into query's last columns and writes every token's latent row.

    q: [T, heads, nope + rope] float, strided or not. query: [T, heads, rank + rope]; the first rank
    columns of it are not touched. kv: [T, rank + rope], kv_a's output before its norm, contiguous.
    norm_weight: [rank] float32. inv_freq: [rope / 2] float64. pages: [P, 64, width].
    block_table: [B, max_pages] int32. positions: [T] int32, -1 for padding, which writes nothing.
    sequences: [T] int32, the tokens' rows of block_table; without it token t has row t.
    """
    num_tokens, num_heads, _ = q.shape
    rank, pairs = norm_weight.shape[0], inv_freq.shape[0]
    quantised = is_quantised(pages)
    width = rank + 2 * pairs + (SCALE_BYTES if quantised else 0)
    assert pages.is_contiguous() and pages.shape[1:] == (PAGE_TOKENS, width), pages.shape
    assert kv.is_contiguous() and kv.shape[1] == rank + 2 * pairs, kv.shape
    assert q.stride(2) == query.stride(2) == 1 and query.shape[2] == rank + 2 * pairs, query.shape
    _rotate_and_cache[(num_tokens, num_heads + 1)](
        *(q, query, kv, norm_weight, inv_freq, pages),
        pages.view(torch.float32) if quantised else pages,
        *(block_table, positions, positions if sequences is None else sequences),
        *(eps, factor, block_table.shape[1]),
        *(q.stride(0), q.stride(1), query.stride(0), query.stride(1)),
        NUM_HEADS=num_heads,
        NOPE=q.shape[2] - 2 * pairs,
        RANK=rank,
        BLOCK=triton.next_power_of_2(rank),
        PAIRS=pairs,
        PAGE=PAGE_TOKENS,
        WIDTH=width,
        QUANTISED=quantised,
        HAS_SEQUENCES=sequences is not None,
        num_warps=1,
    )

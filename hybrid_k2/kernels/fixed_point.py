"""Activations as 16-bit whole numbers with one scale for each 32, as products with blocks take
them.

The error, 2^-16 of the largest of 32, is far below bfloat16's, and a GPU multiplies four such
numbers with four weights in two instructions. Knows no matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """N vectors of K activations, `shape` being how they were given: [..., K].

    codes: int32 [N, 2, K / 4]; word j of the first half holds numbers 4 j and 4 j + 1, of the
    second half 4 j + 2 and 4 j + 3. scales: float32 [N, K / 32]. sums: float32 [N, K / 16], of the
    numbers as they are stored, for weights with an offset.
    """

    shape: tuple[int, ...]
    codes: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor


@triton.jit
def _round(x):
    return tl.floor(x + 0.5).to(tl.int32)


@triton.jit
def _every_fourth(x, four, inside):
    """Numbers 0, 4, 8 ... from x on."""
    return tl.load(x + four * 4, mask=inside, other=0).to(tl.float32)


@triton.jit
def _to_fixed_point(
    x,
    codes,
    scales,
    sums,
    vectors_per_token,
    token_stride,
    vector_stride,
    K: tl.constexpr,
    UNITS: tl.constexpr,
):
    vector = tl.program_id(0)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    four = unit[:, None] * 8 + tl.arange(0, 8)[None, :]  # [UNITS, 8]
    inside = (unit < K // 32)[:, None]
    x += vector // vectors_per_token * token_stride + vector % vectors_per_token * vector_stride
    x0 = _every_fourth(x, four, inside)
    x1 = _every_fourth(x + 1, four, inside)
    x2 = _every_fourth(x + 2, four, inside)
    x3 = _every_fourth(x + 3, four, inside)
    largest = tl.maximum(tl.maximum(tl.abs(x0), tl.abs(x1)), tl.maximum(tl.abs(x2), tl.abs(x3)))
    scale = tl.max(largest, 1) / 32767  # [UNITS]
    inverse = tl.where(scale > 0, 1 / tl.where(scale > 0, scale, 1.0), 0.0)[:, None]
    c0, c1 = _round(x0 * inverse), _round(x1 * inverse)
    c2, c3 = _round(x2 * inverse), _round(x3 * inverse)
    place = codes + vector * (K // 2) + four
    tl.store(place, (c0 & 0xFFFF) | (c1 << 16), mask=inside)
    tl.store(place + K // 4, (c2 & 0xFFFF) | (c3 << 16), mask=inside)
    tl.store(scales + vector * (K // 32) + unit, scale, mask=unit < K // 32)
    runs = tl.sum((c0 + c1 + c2 + c3).reshape(UNITS, 2, 4), 2)
    run = unit[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(sums + vector * (K // 16) + run, runs.to(tl.float32) * scale[:, None], mask=inside)


def to_fixed_point(x: torch.Tensor) -> FixedPoint:
    """x: [T, K] or [T, S, K] float32 or bfloat16, the last dimension contiguous, K a multiple of
    32.

    Not finite numbers come out as anything.
    """
    k, leading = x.shape[-1], x.shape[:-1]
    num_vectors, vectors_per_token = math.prod(leading), math.prod(leading[1:])
    assert x.stride(-1) == 1 and k % 32 == 0, (x.shape, x.stride())
    codes = torch.empty(num_vectors, 2, k // 4, dtype=torch.int32, device=x.device)
    scales = torch.empty(num_vectors, k // 32, device=x.device)
    sums = torch.empty(num_vectors, k // 16, device=x.device)
    units = min(32, triton.next_power_of_2(k // 32))
    _to_fixed_point[(num_vectors, triton.cdiv(k // 32, units))](
        *(x, codes, scales, sums, vectors_per_token, x.stride(0), x.stride(-2)),
        K=k,
        UNITS=units,
        num_warps=1,
    )
    return FixedPoint(tuple(x.shape), codes, scales, sums)

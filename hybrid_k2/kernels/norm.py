"""RMSNorm of the residual stream, with the addition to it that comes before: one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm(
    x, weight, add, out, eps, HAS_ADD: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < N
    value = tl.load(x + token * N + column, mask=inside, other=0)
    if HAS_ADD:
        value += tl.load(add + token * N + column, mask=inside, other=0)
        tl.store(x + token * N + column, value, mask=inside)
    root = tl.sqrt(tl.sum(value * value) / N + eps)
    value = value / root * tl.load(weight + column, mask=inside, other=0)
    tl.store(out + token * N + column, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    add: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, after x += add, in place, where `add` is given.

    x, add: [T, n] float32, contiguous. weight: [n] float32. Returns `out`, or a new [T, n] of
    `dtype`.
    """
    if out is None:
        out = torch.empty_like(x, dtype=dtype)
    assert x.is_contiguous() and out.is_contiguous() and (add is None or add.is_contiguous())
    num_tokens, n = x.shape
    _rms_norm[(num_tokens,)](
        *(x, weight, x if add is None else add, out, eps),
        HAS_ADD=add is not None,
        N=n,
        BLOCK=triton.next_power_of_2(n),
        num_warps=8,
    )
    return out

"""SwiGLU's middle: silu(gate) * up, of a product that holds both side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _silu_multiply(gate_up, out, n, BLOCK: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    gate = tl.load(gate_up + token * 2 * n + column, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * n + n + column, mask=inside, other=0).to(tl.float32)
    hidden = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + token * n + column, hidden.to(out.dtype.element_ty), mask=inside)


def silu_multiply(
    gate_up: torch.Tensor,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """gate_up: [T, 2n] contiguous, gate's n columns first. Returns `out`, or a new [T, n] of
    `dtype`.
    """
    num_tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = torch.empty(num_tokens, n, dtype=dtype, device=gate_up.device)
    assert gate_up.is_contiguous() and out.is_contiguous(), (gate_up.stride(), out.stride())
    _silu_multiply[(triton.cdiv(n, _BLOCK), num_tokens)](gate_up, out, n, BLOCK=_BLOCK)
    return out

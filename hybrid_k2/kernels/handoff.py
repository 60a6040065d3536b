"""What a captured step runs around the routed experts of the CPU: choose, publish; wait, take.

Host arguments are pinned tensors, which kernels read and write where they lie; flags in them are
one word that one side writes and that holds the number of the last step that got there (the
protocol is cpp_ext/include/hk2/handoff.h's). The waiting kernels spin until the CPU answers. Knows
no modules and no threads.
"""

import torch
import triton
import triton.language as tl

_WARPS = 8

# One thread of the program tells; everything the program wrote before is visible to the CPU first.
_TELL = tl.constexpr(
    "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
    " @p st.release.sys.global.u32 [$1], $2; mov.u32 $0, $2; }"
)
# One thread asks: more of them would crowd the bus that the CPU's answer comes over (H200: 16 us a
# layer with 8 warps asking).
_WAIT = tl.constexpr(
    "{ .reg .pred p; .reg .u32 t, seen; mov.u32 t, %tid.x; setp.ne.u32 p, t, 0; @p bra DONE;"
    " AGAIN: ld.acquire.sys.global.u32 seen, [$1]; setp.ne.u32 p, seen, $2; @p bra AGAIN;"
    " DONE: mov.u32 $0, $2; }"
)


@triton.jit
def _tell(flag, step):
    tl.debug_barrier()
    tl.inline_asm_elementwise(_TELL, "=r,l,r", [flag, step], tl.int32, is_pure=False, pack=1)


@triton.jit
def _wait_for(flag, step):
    tl.inline_asm_elementwise(_WAIT, "=r,l,r", [flag, step], tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def _route_kernel(
    logits,  # [B, E] float32
    bias,  # [E] float32
    expert_ids,  # [B, K] int32, host
    weights,  # [B, K] float32, host
    flag,  # int32, host
    step_ptr,  # int32
    num_tokens,
    num_experts,
    scaling,
    NORMALISE: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TELLS: tl.constexpr,
):
    experts = tl.arange(0, BLOCK_E)
    slots = tl.arange(0, BLOCK_K)
    is_expert = experts < num_experts
    offset = tl.load(bias + experts, mask=is_expert, other=0.0)
    for token in range(num_tokens):
        row = tl.load(logits + token * num_experts + experts, mask=is_expert, other=0.0)
        scores = tl.sigmoid(row)
        left = tl.where(is_expert, scores + offset, float("-inf"))
        chosen = tl.zeros([BLOCK_K], tl.int32)
        chosen_scores = tl.zeros([BLOCK_K], tl.float32)
        for k in tl.static_range(TOP_K):
            best = tl.argmax(left, 0)
            score = tl.sum(tl.where(experts == best, scores, 0.0), 0)
            chosen = tl.where(slots == k, best, chosen)
            chosen_scores = tl.where(slots == k, score, chosen_scores)
            left = tl.where(experts == best, float("-inf"), left)
        if NORMALISE:
            chosen_scores = chosen_scores / (tl.sum(chosen_scores, 0) + 1e-20)
        to = token * TOP_K + slots
        tl.store(expert_ids + to, chosen, mask=slots < TOP_K)
        tl.store(weights + to, chosen_scores * scaling, mask=slots < TOP_K)
    if TELLS:
        _tell(flag, tl.load(step_ptr))


def route_and_publish(
    logits: torch.Tensor,
    bias: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    flag: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    *,
    scaling: float,
    normalise: bool,
) -> None:
    """Writes each token's experts and weights, then sets `flag` to `step`.

    The bias steers only the choice (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). What kernels
    before this one wrote is visible to the CPU once it sees the flag.

    logits: [B, E] float32.  bias: [E] float32.  expert_ids: [B, K] int32 and weights: [B, K]
    float32, pinned.  flag: int32, pinned.  step: int32 [1] on the device.
    """
    num_tokens, num_experts = logits.shape
    top_k = expert_ids.shape[1]
    _route_kernel[(1,)](
        logits,
        bias,
        expert_ids,
        weights,
        flag,
        step,
        num_tokens,
        num_experts,
        scaling,
        NORMALISE=normalise,
        TOP_K=top_k,
        BLOCK_K=triton.next_power_of_2(top_k),
        BLOCK_E=triton.next_power_of_2(num_experts),
        TELLS=flag is not None,
        num_warps=4,
    )


@triton.jit
def _add_norm_kernel(
    h,  # [B, H] float32, updated
    first,  # [B, H] float32
    second,  # [B, H] float32, host where WAITS
    weight,  # [H] float32
    x,  # [B, H] float32
    host_x,  # [B, H] float32, host
    flag,  # int32, host
    step_ptr,  # int32
    size,
    eps,
    HAS_FIRST: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    WAITS: tl.constexpr,
    NORMS: tl.constexpr,
    PUBLISHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    here = columns < size
    row = tl.program_id(0) * size
    values = tl.load(h + row + columns, mask=here, other=0.0)
    if HAS_FIRST:
        values += tl.load(first + row + columns, mask=here, other=0.0)
    if NORMS:
        scale = tl.load(weight + columns, mask=here, other=0.0)
    if WAITS:
        _wait_for(flag, tl.load(step_ptr))
        # No cache of the GPU may answer for the host's memory.
        values += tl.load(second + row + columns, mask=here, other=0.0, cache_modifier=".cv")
    elif HAS_SECOND:
        values += tl.load(second + row + columns, mask=here, other=0.0)
    tl.store(h + row + columns, values, mask=here)
    if NORMS:
        normed = values * tl.rsqrt(tl.sum(values * values, 0) / size + eps) * scale
        tl.store(x + row + columns, normed, mask=here)
        if PUBLISHES:
            tl.store(host_x + row + columns, normed, mask=here)


def add_and_norm(
    h: torch.Tensor,
    added: tuple[torch.Tensor, ...],
    weight: torch.Tensor | None,
    eps: float,
    *,
    host_x: torch.Tensor | None = None,
    answered: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> torch.Tensor:
    """h += added; returns RMSNorm(h) * weight, h itself where weight is None.

    h, added: [B, H] float32; at most two.  host_x: pinned, receives the result too.
    answered: pinned int32 flag; the last of `added` is then pinned too and read once the flag
    holds `step` (int32 [1] on the device).
    """
    num_tokens, size = h.shape
    x = torch.empty_like(h) if weight is not None else h
    first, second = (*added, None, None)[:2]
    if answered is not None and len(added) == 1:
        first, second = None, first
    _add_norm_kernel[(num_tokens,)](
        h,
        first,
        second,
        weight,
        x,
        host_x,
        answered,
        step,
        size,
        eps,
        HAS_FIRST=first is not None,
        HAS_SECOND=second is not None,
        WAITS=answered is not None,
        NORMS=weight is not None,
        PUBLISHES=host_x is not None,
        BLOCK=triton.next_power_of_2(size),
        num_warps=_WARPS,
    )
    return x

"""What a captured step runs around the routed experts of the CPU: choose, publish; wait, take.

Host arguments are pinned tensors, which kernels read and write where they lie; flags in them are
one word that one side writes and that holds the number of the last step that got there (the
protocol is cpp_ext/include/hk2/handoff.h's). The waiting kernels spin until the CPU answers. Knows
no modules and no threads.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_WARPS = 8
_TAKEN = 512  # numbers of y that a program reads

# One thread of the program tells; everything the program wrote before is visible to the CPU first.
_TELL = tl.constexpr(
    "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
    " @p st.release.sys.global.u32 [$1], $2; mov.u32 $0, $2; }"
)
# One thread of one program asks the CPU, the others ask it: each look over the bus takes 1 us of
# everybody's (H200: 16 us a layer with 8 warps looking, 65 with 56 programs).
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
    gpu_weights,  # [B, K] float32
    resident_offsets,  # [E] int64
    resident_ids,  # [B, K] int32
    bus_offsets,  # [E] int64
    bus_ids,  # [B, K] int32
    bus_hits,  # int32
    late_ids,  # [B, K] int32
    num_tokens,
    num_experts,
    scaling,
    NORMALISE: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TELLS: tl.constexpr,
    HAS_RESIDENTS: tl.constexpr,
    HAS_BUS: tl.constexpr,
    NUM_LATE: tl.constexpr,
):
    experts = tl.arange(0, BLOCK_E)
    slots = tl.arange(0, BLOCK_K)
    is_expert = experts < num_experts
    offset = tl.load(bias + experts, mask=is_expert, other=0.0)
    for token in range(num_tokens):
        row = tl.load(logits + token * num_experts + experts, mask=is_expert, other=0.0)
        scores = tl.sigmoid(row)
        left = tl.where(is_expert, scores + offset, float("-inf"))
        chosen = tl.full([BLOCK_K], -1, tl.int32)
        chosen_scores = tl.zeros([BLOCK_K], tl.float32)
        for k in tl.static_range(TOP_K):
            best = tl.argmax(left, 0)
            score = tl.sum(tl.where(experts == best, scores, 0.0), 0)
            chosen = tl.where(slots == k, best, chosen)
            chosen_scores = tl.where(slots == k, score, chosen_scores)
            left = tl.where(experts == best, float("-inf"), left)
        if NORMALISE:
            chosen_scores = chosen_scores / (tl.sum(chosen_scores, 0) + 1e-20)
        to = token * SLOTS + slots
        if HAS_RESIDENTS or HAS_BUS:
            tl.store(gpu_weights + to, chosen_scores * scaling, mask=slots < SLOTS)
        if HAS_RESIDENTS:
            is_there = tl.load(resident_offsets + tl.maximum(chosen, 0)) >= 0
            tl.store(resident_ids + to, tl.where(is_there, chosen, -1), mask=slots < SLOTS)
            chosen = tl.where(is_there, -1, chosen)
        if HAS_BUS:  # the last of the token's choices, and as many as its share of all
            hits = tl.load(bus_hits)
            taken = hits * (token + 1) // num_tokens - hits * token // num_tokens
            is_there = tl.load(bus_offsets + tl.maximum(chosen, 0)) >= 0
            is_there = is_there & (slots >= TOP_K - taken)
            tl.store(bus_ids + to, tl.where(is_there, chosen, -1), mask=slots < SLOTS)
            chosen = tl.where(is_there, -1, chosen)
        if NUM_LATE:  # those of least weight, of what is left
            left = chosen >= 0
            lighter = (chosen_scores[None, :] < chosen_scores[:, None]) & left[None, :]
            is_late = left & (tl.sum(lighter.to(tl.int32), 1) < NUM_LATE)
            tl.store(late_ids + to, tl.where(is_late, chosen, -1), mask=slots < SLOTS)
            chosen = tl.where(is_late, -1, chosen)
        tl.store(expert_ids + to, chosen, mask=slots < SLOTS)
        tl.store(weights + to, chosen_scores * scaling, mask=slots < SLOTS)
    if TELLS:
        _tell(flag, tl.load(step_ptr))


@dataclass(frozen=True, slots=True)
class GpuHits:
    """What the GPU computes itself of a step's experts: memory there, which the choice fills.

    weights: [B, K] float32, of all that were chosen.  resident, bus: offsets [E] int64 as in an
    ExpertTable's, -1 for those that are not there, and ids [B, K] int32, -1 for others': experts in
    VRAM, and experts in host memory, of which it takes so many hits as `bus_hits` says, int32 [1].
    """

    weights: torch.Tensor
    resident: tuple[torch.Tensor, torch.Tensor] | None = None
    bus: tuple[torch.Tensor, torch.Tensor] | None = None
    bus_hits: torch.Tensor | None = None


def route_and_publish(
    logits: torch.Tensor,
    bias: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    flag: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    *,
    top_k: int,
    scaling: float,
    normalise: bool,
    gpu: GpuHits | None = None,
    late: tuple[torch.Tensor, int] | None = None,
) -> None:
    """Writes each token's experts and weights, then sets `flag` to `step`.

    The bias steers only the choice (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). What kernels
    before this one wrote is visible to the CPU once it sees the flag.

    logits: [B, E] float32.  bias: [E] float32.  expert_ids: [B, K] int32 and weights: [B, K]
    float32, pinned; beyond the first top_k they become -1 and 0.  flag: int32, pinned.  step: int32
    [1] on the device.  gpu: where the GPU has a part, whose ids the pinned ones then lack, as they
    lack late ones: of each token's as many as late's number, the lightest, go to its [B, K] int32.
    """
    late_ids, num_late = late or (None, 0)
    resident_offsets, resident_ids = (gpu and gpu.resident) or (None, None)
    bus_offsets, bus_ids = (gpu and gpu.bus) or (None, None)
    num_tokens, num_experts = logits.shape
    num_slots = expert_ids.shape[1]
    _route_kernel[(1,)](
        logits,
        bias,
        expert_ids,
        weights,
        flag,
        step,
        gpu and gpu.weights,
        resident_offsets,
        resident_ids,
        bus_offsets,
        bus_ids,
        gpu and gpu.bus_hits,
        late_ids,
        num_tokens,
        num_experts,
        scaling,
        NORMALISE=normalise,
        TOP_K=top_k,
        SLOTS=num_slots,
        BLOCK_K=triton.next_power_of_2(num_slots),
        BLOCK_E=triton.next_power_of_2(num_experts),
        TELLS=flag is not None,
        HAS_RESIDENTS=resident_offsets is not None,
        HAS_BUS=bus_offsets is not None,
        NUM_LATE=num_late,
        num_warps=4,
    )


@triton.jit
def _publish_kernel(
    ids, expert_ids, flag, step_ptr, size, BLOCK: tl.constexpr, TELLS: tl.constexpr
):
    part = tl.arange(0, BLOCK)
    tl.store(expert_ids + part, tl.load(ids + part, mask=part < size), mask=part < size)
    if TELLS:
        _tell(flag, tl.load(step_ptr))


def publish(
    ids: torch.Tensor,
    expert_ids: torch.Tensor,
    flag: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> None:
    """Replaces the ids that route_and_publish wrote, its weights stay; then sets `flag`.

    ids: [B, K] int32 on the device.  expert_ids: [B, K] int32, pinned.
    """
    size = ids.numel()
    _publish_kernel[(1,)](
        *(ids, expert_ids, flag, step, size),
        BLOCK=triton.next_power_of_2(size),
        TELLS=flag is not None,
        num_warps=4,
    )


@triton.jit
def _take_kernel(
    h,  # [n] float32, updated
    added,  # [n] float32
    y,  # [n] float32, host
    answered,  # int32, host
    passed,  # int32
    step_ptr,  # int32
    size,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = part < size
    values = tl.load(h + part, mask=here, other=0.0) + tl.load(added + part, mask=here, other=0.0)
    step = tl.load(step_ptr)
    if tl.program_id(0) == 0:
        _wait_for(answered, step)
        _tell(passed, step)
    else:
        _wait_for(passed, step)
    # No cache of the GPU may answer for the host's memory.
    values += tl.load(y + part, mask=here, other=0.0, cache_modifier=".cv")
    tl.store(h + part, values, mask=here)


def wait_and_add(
    h: torch.Tensor,
    added: torch.Tensor,
    y: torch.Tensor,
    answered: torch.Tensor,
    passed: torch.Tensor,
    step: torch.Tensor,
) -> None:
    """h += added + y, once the CPU has set `answered` to `step`.

    Many programs read y, because one multiprocessor reads the host's memory at 5 GB/s only (H200).
    They must all run at once, and do: there are 14 of 128 threads for each token.

    h, added: [B, H] float32.  y: [B, H] float32, pinned.  answered: int32, pinned.  passed, step:
    int32 on the device; `passed` is this layer's own.
    """
    _take_kernel[(triton.cdiv(h.numel(), _TAKEN),)](
        h, added, y, answered, passed, step, h.numel(), BLOCK=_TAKEN, num_warps=4
    )


@triton.jit
def _add_norm_kernel(
    h,  # [B, H] float32, updated where HAS_ADDED
    added,  # [B, H] float32
    weight,  # [H] float32
    x,  # [B, H] float32
    host_x,  # [B, H] float32, host
    size,
    eps,
    HAS_ADDED: tl.constexpr,
    PUBLISHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    here = columns < size
    row = tl.program_id(0) * size
    values = tl.load(h + row + columns, mask=here, other=0.0)
    scale = tl.load(weight + columns, mask=here, other=0.0)
    if HAS_ADDED:
        values += tl.load(added + row + columns, mask=here, other=0.0)
        tl.store(h + row + columns, values, mask=here)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / size + eps) * scale
    tl.store(x + row + columns, normed, mask=here)
    if PUBLISHES:
        tl.store(host_x + row + columns, normed, mask=here)


def add_and_norm(
    h: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    host_x: torch.Tensor | None = None,
) -> torch.Tensor:
    """h += added; returns RMSNorm(h) * weight as a new [B, H] float32.

    h, added: [B, H] float32.  weight: [H] float32.  host_x: pinned, receives the result too; it is
    there when the flag of a later route_and_publish is.
    """
    num_tokens, size = h.shape
    x = torch.empty_like(h)
    _add_norm_kernel[(num_tokens,)](
        h,
        added,
        weight,
        x,
        host_x,
        size,
        eps,
        HAS_ADDED=added is not None,
        PUBLISHES=host_x is not None,
        BLOCK=triton.next_power_of_2(size),
        num_warps=_WARPS,
    )
    return x

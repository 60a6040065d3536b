"""Which experts a token goes to, and with what weight: backends/router.route in one launch.

The sigmoid is taken in float64, so that the scores are the correctly rounded ones; no product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _choose_experts(
    logits,
    bias,
    ids,
    weights,
    scale,
    num_experts,
    NUM_CHOSEN: tl.constexpr,
    CHOSEN: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    expert = tl.arange(0, BLOCK)
    inside = expert < num_experts
    logit = tl.load(logits + token * num_experts + expert, mask=inside, other=0).to(tl.float64)
    score = (1 / (1 + tl.exp(-logit))).to(tl.float32)
    rank = score + tl.load(bias + expert, mask=inside, other=0)
    rank = tl.where(inside, rank, float("-inf"))
    place = tl.arange(0, CHOSEN)
    chosen = tl.zeros([CHOSEN], tl.int32)
    weight = tl.zeros([CHOSEN], tl.float32)
    for k in tl.static_range(NUM_CHOSEN):
        best = tl.argmax(rank, 0)
        chosen = tl.where(place == k, best, chosen)
        weight = tl.where(place == k, tl.sum(tl.where(expert == best, score, 0.0)), weight)
        rank = tl.where(expert == best, float("-inf"), rank)
    if NORMALISE:
        weight = weight / (tl.sum(weight) + 1e-20)
    tl.store(ids + token * NUM_CHOSEN + place, chosen, mask=place < NUM_CHOSEN)
    tl.store(weights + token * NUM_CHOSEN + place, weight * scale, mask=place < NUM_CHOSEN)


def choose_experts(
    logits: torch.Tensor,
    bias: torch.Tensor,
    num_chosen: int,
    scale: float,
    normalise: bool = True,
    ids: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The num_chosen largest sigmoid(logits) + bias of each token, and their scaled sigmoids.

    logits: [T, E] float32. bias: [E] float32. Returns ids [T, K] int32, the best first, and weights
    [T, K] float32.
    """
    num_tokens, num_experts = logits.shape
    shape = (num_tokens, num_chosen)
    if ids is None:
        ids = torch.empty(shape, dtype=torch.int32, device=logits.device)
    if weights is None:
        weights = torch.empty(shape, dtype=torch.float32, device=logits.device)
    assert logits.is_contiguous(), logits.stride()
    _choose_experts[(num_tokens,)](
        *(logits, bias, ids, weights, scale, num_experts),
        NUM_CHOSEN=num_chosen,
        CHOSEN=triton.next_power_of_2(num_chosen),
        NORMALISE=normalise,
        BLOCK=triton.next_power_of_2(num_experts),
    )
    return ids, weights

"""Which experts of a prompt the GPU is sent: both sides end together, at rates that are learned."""

import numpy as np
import pytest

from hybrid_k2.backends.prefill_split import LinearCost, PrefillSplit

EXPERTS, EXPERT_BYTES, EXPERT_WEIGHTS = 384, 24_772_608, 44_040_192
EVERY = np.ones(EXPERTS, bool)


def token_counts(num_tokens, seed=0):
    """Tokens of each expert where eight of 384 are chosen at random."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(8 * num_tokens, np.full(EXPERTS, 1 / EXPERTS))


def learned(cpu_expert_s=190e-6, cpu_token_s=5.4e-6, gpu_expert_s=450e-6, prompts=(64, 512, 8192)):
    """A split that has seen a machine with these rates."""
    split = PrefillSplit(EXPERT_BYTES, EXPERT_WEIGHTS)
    for seed in range(4):
        for num_tokens in prompts:
            counts = token_counts(num_tokens, seed)
            used = int((counts > 0).sum())
            split.cpu.learn(used, counts.sum(), used * cpu_expert_s + counts.sum() * cpu_token_s)
            split.gpu.learn(used, counts.sum(), used * gpu_expert_s)
    return split


def sides(split, counts, chosen):
    """Predicted seconds of the CPU and of the GPU."""
    rest = np.delete(counts, chosen)
    cpu_s = split.cpu(np.count_nonzero(rest), rest.sum())
    return float(cpu_s), float(split.gpu(len(chosen), counts[chosen].sum()))


@pytest.mark.parametrize("num_tokens", [512, 2048, 8192])
def test_both_sides_end_within_one_expert_of_each_other(num_tokens):
    split, counts = learned(), token_counts(num_tokens)
    cpu_s, gpu_s = sides(split, counts, split.choose(counts, can_stream=EVERY))
    assert abs(cpu_s - gpu_s) < 1e-3


def test_a_short_prompt_stays_on_the_cpu_and_a_long_one_goes_to_the_gpu_mostly():
    split = learned()
    shares = [
        len(split.choose(token_counts(n), can_stream=EVERY, cpu_extra_s=0)) / EXPERTS
        for n in (1, 512, 2048, 8192)
    ]
    assert shares[0] < 0.01 and shares == sorted(shares) and 0.6 < shares[-1] < 0.8


def test_the_experts_with_most_tokens_go_to_the_gpu_first():
    counts = token_counts(2048)
    chosen = learned().choose(counts, can_stream=EVERY)
    assert counts[chosen].min() >= np.delete(counts, chosen).max()
    assert list(counts[chosen]) == sorted(counts[chosen], reverse=True)


def test_experts_without_tokens_or_out_of_the_gpus_reach_are_never_sent():
    counts = token_counts(8192)
    counts[:300] = 0
    can_stream = EVERY.copy()
    can_stream[300:340] = False
    chosen = learned().choose(counts, can_stream=can_stream)
    assert chosen and min(chosen) >= 340


def test_no_tokens_at_all_choose_nothing():
    assert learned().choose(np.zeros(EXPERTS, int), can_stream=EVERY) == []


def test_experts_at_hand_are_taken_first_and_only_with_tokens():
    counts = token_counts(8192)
    counts[7] = 0
    chosen = learned().choose(counts, can_stream=EVERY, at_hand=tuple(range(40)))
    assert set(chosen[:39]) == {*range(40)} - {7} and len(set(chosen)) == len(chosen)
    without = learned().choose(counts, can_stream=EVERY)
    assert len(without) + 5 < len(chosen), "what is there costs the bus nothing"


def test_a_gain_that_the_prediction_cannot_tell_from_nothing_is_not_worth_a_transfer():
    split, counts = PrefillSplit(EXPERT_BYTES, EXPERT_WEIGHTS), np.full(EXPERTS, 1)
    split.cpu = LinearCost(1e-3, 0)
    for gpu_expert_s, num_sent in [(10e-3, 35), (30e-3, 0)]:  # of 384 it could take 12 in time
        split.gpu = LinearCost(gpu_expert_s, 0)
        assert len(split.choose(counts, can_stream=EVERY)) == pytest.approx(num_sent, abs=1)


def test_a_slower_bus_sends_fewer():
    counts = token_counts(8192)
    fast, slow = (
        learned(gpu_expert_s=s).choose(counts, can_stream=EVERY) for s in (450e-6, 1000e-6)
    )
    assert len(slow) < 0.8 * len(fast)


def test_a_cost_learns_both_rates_from_prompts_of_several_lengths():
    cost = LinearCost(expert_s=1e-4, token_s=1e-6)
    for experts, tokens in [(300, 600), (384, 4096), (384, 65536)] * 5:
        cost.learn(experts, tokens, experts * 200e-6 + tokens * 5e-6)
    assert float(cost(384, 30000)) == pytest.approx(384 * 200e-6 + 30000 * 5e-6, rel=0.05)


def test_a_cost_that_saw_one_length_only_is_right_there():
    cost = LinearCost(expert_s=1e-4, token_s=1e-6)
    for _ in range(20):
        cost.learn(384, 4096, 0.1)
    assert float(cost(384, 4096)) == pytest.approx(0.1, rel=0.02)


def test_a_cost_ignores_measurements_that_say_nothing():
    cost = LinearCost(expert_s=1e-4, token_s=1e-6)
    cost.learn(0, 0, 1.0)
    cost.learn(3, 5, 0.0)
    assert float(cost(1, 0)) == 1e-4

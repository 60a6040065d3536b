"""Which experts of a prompt the GPU is sent: both sides end together, at rates that are learned."""

import numpy as np
import pytest

from hybrid_k2.backends.prefill_split import ExpertCosts, PrefillSplit

EXPERTS, EXPERT_BYTES, EXPERT_WEIGHTS = 384, 24_772_608, 44_040_192
EVERY = np.ones(EXPERTS, bool)


def token_counts(num_tokens, seed=0):
    """Tokens of each expert where eight of 384 are chosen at random."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(8 * num_tokens, np.full(EXPERTS, 1 / EXPERTS))


def cpu_seconds(counts):
    """A machine's: reading an expert, or computing its tokens where that takes longer."""
    return np.where(counts > 0, np.maximum(250e-6, 110e-6 + 11e-6 * counts), 0).sum()


def learned(gpu_expert_s=450e-6, prompts=(64, 512, 2048, 8192)):
    """A split that has seen prompts of these lengths, the last of them last."""
    split = PrefillSplit(EXPERT_BYTES, EXPERT_WEIGHTS)
    for num_tokens in prompts:
        for seed in range(16):
            counts = token_counts(num_tokens, seed)
            split.cpu.learn(counts, cpu_seconds(counts))
            split.gpu.learn(counts, np.count_nonzero(counts) * gpu_expert_s)
    return split


def sides(counts, chosen, gpu_expert_s=450e-6):
    """Seconds of the CPU and of the GPU."""
    rest = counts.copy()
    rest[chosen] = 0
    return cpu_seconds(rest), len(chosen) * gpu_expert_s


@pytest.mark.parametrize("num_tokens", [128, 512, 2048, 8192])
def test_both_sides_end_together(num_tokens):
    counts = token_counts(num_tokens, seed=99)
    cpu_s, gpu_s = sides(counts, learned().choose(counts, can_stream=EVERY))
    assert cpu_s == pytest.approx(gpu_s, rel=0.12)


def test_a_short_prompt_stays_on_the_cpu_and_a_long_one_goes_to_the_gpu_mostly():
    split = learned()
    shares = [
        len(split.choose(token_counts(n), can_stream=EVERY, cpu_extra_s=0)) / EXPERTS
        for n in (1, 512, 2048, 8192)
    ]
    assert shares[0] < 0.01 and shares == sorted(shares) and 0.7 < shares[-1] < 0.9


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


def test_what_is_still_on_its_way_keeps_the_bus_busy():
    counts = token_counts(8192)
    split, at_hand = learned(), tuple(range(40))
    free, busy = (
        split.choose(counts, can_stream=EVERY, at_hand=at_hand, gpu_busy_s=s)
        for s in (0, 40 * 450e-6)
    )
    assert len(free) - 40 < len(busy) < len(free)


def test_a_gain_that_the_prediction_cannot_tell_from_nothing_is_not_worth_a_transfer():
    split, counts = PrefillSplit(EXPERT_BYTES, EXPERT_WEIGHTS), np.full(EXPERTS, 1)
    split.cpu = ExpertCosts(1e-3)
    for gpu_expert_s, num_sent in [(10e-3, 35), (30e-3, 0)]:  # of 384 it could take 12 in time
        split.gpu = ExpertCosts(gpu_expert_s)
        assert len(split.choose(counts, can_stream=EVERY)) == pytest.approx(num_sent, abs=1)


def test_a_slower_bus_sends_fewer():
    counts = token_counts(8192)
    fast, slow = (
        learned(gpu_expert_s=s).choose(counts, can_stream=EVERY) for s in (450e-6, 1000e-6)
    )
    assert len(slow) < 0.85 * len(fast)


def test_prompts_of_one_length_teach_nothing_about_others():
    costs = ExpertCosts(expert_s=3e-4, token_s=2e-5)
    before = costs(np.array([1, 3, 200]))
    for _ in range(20):
        costs.learn(np.full(EXPERTS, 170), 0.9)
    assert costs(np.full(EXPERTS, 170)).sum() == pytest.approx(0.9, rel=1e-4)
    after = costs(np.array([1, 3, 200]))
    assert list(after[:2]) == list(before[:2]) and after[2] != before[2]


def test_a_mixture_of_experts_is_learned_as_a_whole():
    costs = ExpertCosts(expert_s=1e-4, token_s=1e-6)
    counts = token_counts(300)
    for _ in range(30):
        costs.learn(counts, cpu_seconds(counts))
    assert costs(counts).sum() == pytest.approx(cpu_seconds(counts), rel=0.02)


def test_one_measurement_that_is_far_off_moves_a_cost_a_little_only():
    costs = ExpertCosts(expert_s=1e-4)
    costs.learn(np.full(10, 5), 60.0)  # kernels were compiled
    assert 1e-4 < costs.least_s < 1.5e-4


@pytest.mark.parametrize(("counts", "seconds"), [([0, 0], 1.0), ([3, 5], 0.0), ([], 1.0)])
def test_a_cost_ignores_measurements_that_say_nothing(counts, seconds):
    costs = ExpertCosts(expert_s=1e-4)
    costs.learn(np.array(counts, int), seconds)
    assert costs.least_s == 1e-4

"""Sampling against probabilities computed the slow way, and the ranges of its options."""

import math

import numpy as np
import pytest

from hybrid_k2.engine.sampler import Sampler, distribution, token_logprobs
from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.errors import RequestError

LOGITS = np.random.default_rng(0).normal(0, 2, 40).astype(np.float32)


def exact_probabilities(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Token -> probability, by sorting and looping: what the names of the options mean."""
    weights = {i: math.exp(float(x) / temperature) for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])
    if top_k:
        ranked = ranked[:top_k]
    total, kept, mass = sum(weights[i] for i in ranked), [], 0.0
    for i in ranked:
        kept.append(i)
        mass += weights[i]
        if mass >= top_p * total:
            break
    kept = [i for i in kept if weights[i] >= min_p * weights[kept[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0, "top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.3, "temperature": 2.0},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
    {"top_p": 0.0},
    {"top_k": 1000},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_distribution_is_the_one_the_options_name(options):
    token_ids, weights = distribution(LOGITS, SamplingParams(**{"temperature": 1.0, **options}))
    expected = exact_probabilities(LOGITS, **options)
    assert set(token_ids.tolist()) == set(expected)
    for token_id, weight in zip(token_ids.tolist(), weights / weights.sum(), strict=True):
        assert weight == pytest.approx(expected[token_id], rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS[1:7:2], ids=str)
def test_drawn_tokens_occur_as_often_as_their_probabilities_say(options):
    num_draws = 20_000
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 1, **options}))
    counts = np.bincount([sampler.sample(LOGITS)[0] for _ in range(num_draws)], minlength=40)
    expected = exact_probabilities(LOGITS, **options)
    for token_id, count in enumerate(counts):
        p = expected.get(token_id, 0.0)
        # Five standard deviations of a binomial count: one false alarm in 40 000 runs of this test.
        assert abs(count - num_draws * p) <= 5 * math.sqrt(num_draws * p * (1 - p)) + 1e-9


def test_temperature_zero_takes_the_largest_logit():
    assert Sampler(SamplingParams(temperature=0)).sample(LOGITS)[0] == int(LOGITS.argmax())


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    assert Sampler(SamplingParams(temperature=1e-300)).sample(LOGITS)[0] == int(LOGITS.argmax())


def test_logits_of_any_size_are_sampled_without_overflow():
    huge = np.array([3e38, -3e38, 3e38], dtype=np.float32)
    tokens = {Sampler(SamplingParams(seed=s)).sample(huge)[0] for s in range(20)}
    assert tokens == {0, 2}


def test_the_same_seed_gives_the_same_tokens():
    def draw(seed):
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.sample(LOGITS)[0] for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(-1) == draw(-1)
    assert draw(None) != draw(None)


def test_penalties_lower_what_was_generated_and_by_how_often():
    logits = np.array([5.0, 4.9, 0.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=0.15))
    # 5.0 | 4.85 4.9 | 4.85 4.75 | 4.70 4.75
    assert [sampler.sample(logits)[0] for _ in range(4)] == [0, 1, 0, 1]
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=0.2))
    # 5.0 | 4.8 4.9 | 4.8 4.7: a presence counts once
    assert [sampler.sample(logits)[0] for _ in range(4)] == [0, 1, 0, 0]
    assert logits.tolist() == pytest.approx([5.0, 4.9, 0.0])


def test_logit_bias_moves_a_logit():
    bias = {3: 100.0, int(LOGITS.argmax()): -100.0}
    assert Sampler(SamplingParams(temperature=0, logit_bias=bias)).sample(LOGITS)[0] == 3


def test_logprobs_are_of_the_models_own_distribution():
    params = SamplingParams(temperature=0.1, top_k=1, logit_bias={3: 100.0}, logprobs=4)
    token_id, logprobs = Sampler(params).sample(LOGITS)
    exact = {i: math.log(p) for i, p in exact_probabilities(LOGITS).items()}
    ranked = sorted(exact, key=lambda i: -exact[i])[:4]
    assert token_id == 3
    assert logprobs.logprob == pytest.approx(exact[3], rel=1e-6)
    assert [i for i, _ in logprobs.top] == ranked
    assert [value for _, value in logprobs.top] == pytest.approx([exact[i] for i in ranked])


def test_zero_top_logprobs_give_the_chosen_token_alone():
    assert token_logprobs(LOGITS, 2, 0).top == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 2),
        ("seed", 2**64),
        pytest.param("seed", 10**5000, id="a-huge-seed"),
        ("max_tokens", 0),
        ("frequency_penalty", 3),
        ("presence_penalty", -2.5),
        ("logprobs", 21),
        ("stop_token_ids", (-1,)),
        ("logit_bias", {3: 101}),
        ("logit_bias", {-3: 1}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert len(str(caught.value)) < 200

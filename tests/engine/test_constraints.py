"""Constrained answers with integers: what may be drawn, how answers end, whose error it is."""

import dataclasses

import numpy as np
import pytest
from engine.fake_model import EOS, VOCAB_SIZE, FakeModel, fake_logits
from engine.test_engine import GREEDY, drain, open_engine, run

from hybrid_k2.engine import SamplingParams
from hybrid_k2.engine.sampler import Sampler
from hybrid_k2.errors import RequestError


@dataclasses.dataclass
class Ladder:
    """A constraint and its grammar: multiples of `step`, `num_tokens` of them; ends from `least`.

    fails_at: the token count at which mask() raises.
    """

    step: int = 3
    num_tokens: int = 6
    least: int = 6
    fails_at: int | None = None
    num_accepted: int = 0

    def start(self) -> "Ladder":
        return dataclasses.replace(self, num_accepted=0)

    @property
    def may_end(self) -> bool:
        return self.num_accepted >= self.least

    @property
    def is_done(self) -> bool:
        return self.num_accepted >= self.num_tokens

    def mask(self) -> np.ndarray | None:
        if self.num_accepted == self.fails_at:
            raise ArithmeticError("no mask")
        return np.arange(VOCAB_SIZE) % self.step == 0 if self.step else None

    def accept(self, token_id: int) -> None:
        assert not self.step or token_id % self.step == 0
        assert token_id != EOS
        self.num_accepted += 1


def with_grammar(**grammar):
    return dataclasses.replace(GREEDY, ignore_eos=False, max_tokens=20, grammar=Ladder(**grammar))


def expected_tokens(prompt, allowed, num_tokens):
    """Greedy answers by looping over what is allowed."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        logits = fake_logits(token_ids)
        token_ids.append(max(allowed, key=lambda i: (logits[i], -i)))
    return token_ids[len(prompt) :]


def test_an_answer_is_the_best_that_its_grammar_allows_and_ends_with_it():
    model = FakeModel()
    [(tokens, last)] = run(open_engine(model), [1, 2], params=with_grammar())
    assert tokens == expected_tokens([1, 2], range(0, VOCAB_SIZE, 3), 6)
    assert (last.finish_reason, last.token_id) == ("stop", tokens[-1])
    assert len(model.steps) == 1 + 6, "no step is spent on an end token"


def test_where_any_token_may_follow_only_the_end_is_kept_from_being_drawn():
    ends_early = {EOS: 100.0}
    params = dataclasses.replace(
        with_grammar(step=0, num_tokens=99, least=4), logit_bias=ends_early
    )
    [(tokens, last)] = run(open_engine(), [1, 2], params=params)
    assert tokens == expected_tokens([1, 2], set(range(VOCAB_SIZE)) - {EOS}, 4)
    assert (last.finish_reason, last.token_id) == ("stop", None)


def test_an_end_token_is_allowed_where_the_grammar_may_end_though_its_mask_lacks_it():
    params = dataclasses.replace(with_grammar(least=2), logit_bias={EOS: 100.0})
    [(tokens, last)] = run(open_engine(), [1, 2], params=params)
    assert (len(tokens), last.finish_reason, last.token_id) == (2, "stop", None)


def test_a_stop_token_that_the_grammar_allows_waits_for_the_grammars_end_too():
    params = dataclasses.replace(with_grammar(least=4), stop_token_ids=(9,), logit_bias={9: 100.0})
    [(tokens, last)] = run(open_engine(), [1, 2], params=params)
    assert (len(tokens), 9 in tokens, last.finish_reason) == (4, False, "stop")


def test_choices_of_one_request_do_not_share_their_progress():
    params = with_grammar()
    results = run(open_engine(), [1, 2], [1, 2], [5], params=params)
    assert [len(tokens) for tokens, _ in results] == [6, 6, 6]
    assert params.grammar.num_accepted == 0


def test_constrained_and_free_answers_that_run_together_are_as_each_alone():
    prompts = {(5, 6): with_grammar(), (8, 9): GREEDY, (4,): with_grammar(step=7)}
    alone = [run(open_engine(), list(p), params=params)[0][0] for p, params in prompts.items()]
    engine = open_engine()
    ids = [engine.submit(list(prompt), params) for prompt, params in prompts.items()]
    assert [tokens for tokens, _ in drain(engine, ids)] == alone


def test_a_prompt_found_in_the_cache_gives_the_same_constrained_answer():
    engine = open_engine()
    [(first, _)] = run(engine, [1, 2, 3, 4, 5], params=with_grammar())
    [(second, last)] = run(engine, [1, 2, 3, 4, 5], params=with_grammar())
    assert last.num_cached_tokens > 0
    assert first == second


def test_a_constraint_that_fails_ends_its_own_request_and_no_other():
    engine = open_engine()
    ids = [engine.submit([1, 2], with_grammar(fails_at=3)), engine.submit([5], GREEDY)]
    (failed, error), (tokens, last) = drain(engine, ids)
    assert (len(failed), error.finish_reason, str(error.error)) == (3, "error", "no mask")
    assert (len(tokens), last.finish_reason) == (8, "length")


def test_a_grammar_that_leaves_no_token_is_that_requests_error():
    [(tokens, last)] = run(open_engine(), [1], params=with_grammar(step=1000, num_tokens=9))
    assert tokens == [0] * 6 and last.finish_reason == "stop"  # 0 is a multiple of all
    params = dataclasses.replace(with_grammar(least=99), grammar=NoToken())
    [(tokens, last)] = run(open_engine(), [1], params=params)
    assert (tokens, last.finish_reason) == ([], "error")
    assert isinstance(last.error, RequestError)


class NoToken(Ladder):
    def mask(self) -> np.ndarray:
        return np.zeros(3, dtype=bool)


def test_an_aborted_constrained_answer_ends_at_once():
    engine = open_engine()
    request_id = engine.submit([1, 2], with_grammar())
    engine.step()
    engine.abort(request_id)
    assert [output.finish_reason for output in engine.step()] == ["abort"]


def test_temperature_and_top_p_see_only_what_is_allowed():
    logits = np.random.default_rng(0).normal(0, 1, VOCAB_SIZE).astype(np.float32)
    logits[1] = 50.0  # not allowed, and it would leave top_p nothing else
    params = SamplingParams(temperature=2.0, top_p=0.9, seed=1, grammar=Ladder(num_tokens=9999))
    sampler = Sampler(params)
    drawn = {sampler.sample(logits)[0] for _ in range(500)}
    assert len(drawn) > 5 and all(token_id % 3 == 0 for token_id in drawn)


def test_logprobs_stay_the_models_own():
    logits = fake_logits([1])
    params = SamplingParams(temperature=0, logprobs=2, grammar=Ladder(num_tokens=9))
    constrained = Sampler(params).sample(logits)[1]
    free = Sampler(dataclasses.replace(params, grammar=None)).sample(logits)[1]
    assert constrained.top == free.top
    assert constrained.logprob <= free.logprob


def test_no_end_token_comes_before_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=3, max_tokens=9, logit_bias={EOS: 100.0})
    [(tokens, last)] = run(open_engine(), [1, 2], params=params)
    assert (len(tokens), last.finish_reason) == (3, "stop")
    assert EOS not in tokens


def test_a_repetition_penalty_shrinks_what_the_prompt_and_the_answer_have():
    """The definition of transformers' RepetitionPenaltyLogitsProcessor."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, prompt = fake_logits([2]) - 4, [3, 5, 5, 40]
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.7), prompt)
    token_ids = list(prompt)
    for _ in range(12):
        penalised = RepetitionPenaltyLogitsProcessor(1.7)(
            torch.tensor([token_ids]), torch.from_numpy(logits)[None]
        )
        token_ids.append(sampler.sample(logits)[0])
        assert token_ids[-1] == int(penalised.argmax())


@pytest.mark.parametrize("field", ["min_tokens", "repetition_penalty"])
def test_a_negative_value_is_an_error_that_names_it(field):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: -1})

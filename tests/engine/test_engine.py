"""The engine with integers: what it answers, computes and keeps, and how it fails."""

import numpy as np
import pytest
from engine.driver import GREEDY, drain, open_engine, run
from engine.fake_model import VOCAB_SIZE, FakeModel, fake_logits, greedy_tokens

from hybrid_k2.engine import SamplingParams
from hybrid_k2.errors import ContextLengthError, NonFiniteError, RequestError


def stopping_prompt():
    """A prompt whose greedy answer reaches the end token after at least one other, within 20."""
    for first in range(VOCAB_SIZE):
        for second in range(VOCAB_SIZE):
            if 1 <= len(greedy_tokens([first, second], 20)) < 20:
                return [first, second]
    raise AssertionError("no such prompt")


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
def test_a_greedy_answer_is_the_models_own_whatever_the_chunks(length):
    prompt = [1 + i for i in range(length)]
    [(tokens, last)] = run(open_engine(), prompt)
    expected = list(prompt)
    for _ in range(8):
        expected.append(int(fake_logits(expected).argmax()))
    assert tokens == expected[length:]
    assert last.finish_reason == "length"


def test_an_answer_stops_before_the_end_token():
    prompt = stopping_prompt()
    [(tokens, last)] = run(open_engine(), prompt, params=SamplingParams(temperature=0))
    assert tokens == greedy_tokens(prompt, 20)
    assert (last.finish_reason, last.token_id) == ("stop", None)


def test_an_answer_stops_at_a_requested_token():
    first, second, *_ = greedy_tokens([3, 1], 8)
    params = SamplingParams(temperature=0, stop_token_ids=(second,))
    [(tokens, last)] = run(open_engine(), [3, 1], params=params)
    assert (tokens, last.finish_reason) == ([first], "stop")


def test_an_answer_ends_where_the_context_does():
    params = SamplingParams(temperature=0, ignore_eos=True)
    [(tokens, last)] = run(open_engine(context=10), [1, 2, 3], params=params)
    assert (len(tokens), last.finish_reason) == (7, "length")


def test_sequences_that_run_together_answer_as_each_alone():
    prompts = [[5, 6], list(range(1, 12)), [9] * 5, [4], [5, 6, 8]]
    alone = [run(open_engine(), prompt)[0][0] for prompt in prompts]
    together = [tokens for tokens, _ in run(open_engine(), *prompts)]
    assert together == alone


def test_a_seed_gives_the_same_tokens_whatever_else_runs():
    seeded = SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)
    [(alone, _)] = run(open_engine(), [1, 2, 3], params=seeded)
    engine = open_engine()
    noise = SamplingParams(temperature=1.0, max_tokens=30, ignore_eos=True)
    ids = [engine.submit([8, 9], noise)]
    for _ in range(3):
        engine.step()
    ids += [engine.submit([1, 2, 3], seeded), engine.submit([4] * 9, noise)]
    assert drain(engine, ids)[1][0][:20] == alone


def test_a_short_prompt_passes_a_long_one_that_is_being_read():
    model = FakeModel()
    engine = open_engine(model)
    slow = engine.submit([1] * 100, GREEDY)
    engine.step()
    quick = engine.submit([2, 3], GREEDY)
    answered = [output.request_id for _ in range(6) for output in engine.step() if output.token_id]
    assert answered and set(answered) == {quick}
    results = drain(engine, [slow])
    assert results[0][0] == greedy_tokens([1] * 100, 8, ignore_eos=True)
    assert max(sum(n for n in step if n > 1) for step in model.steps) <= 4


def test_an_answer_goes_on_while_a_long_prompt_is_read():
    engine = open_engine()
    talker = engine.submit([1, 2], GREEDY)
    engine.step()
    engine.submit([3] * 60, GREEDY)
    for _ in range(5):
        assert [o.request_id for o in engine.step() if o.token_id is not None] == [talker]


def test_what_decodes_and_what_is_read_go_through_the_model_apart():
    model = FakeModel()
    engine = open_engine(model)
    answering = engine.submit([1, 2], GREEDY)
    engine.step()
    reading = engine.submit([3] * 9, GREEDY)
    model.steps.clear()
    drain(engine, [answering, reading])
    kinds = [{count > 1 for count in step} for step in model.steps]
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds


def test_no_more_sequences_run_than_were_asked_for():
    model = FakeModel()
    engine = open_engine(model, max_sequences=2)
    run(engine, [1], [2], [3], [4], [5])
    assert max(len(step) for step in model.steps) == 2


def test_waiting_requests_start_in_the_order_they_came():
    engine = open_engine(max_sequences=1)
    ids = [engine.submit([token], GREEDY) for token in (1, 2, 3)]
    finished = []
    while len(finished) < 3:
        finished += [output.request_id for output in engine.step() if output.finish_reason]
    assert finished == ids


def test_the_next_turn_computes_only_what_is_new():
    model = FakeModel()
    engine = open_engine(model)
    prompt = list(range(1, 11))
    [(answer, _)] = run(engine, prompt)
    model.steps.clear()
    turn = [*prompt, *answer, 20, 21, 22]
    [(tokens, last)] = run(engine, turn)
    assert tokens == run(open_engine(), turn)[0][0]
    # The first answer's last token was sampled but never computed; it is new, too.
    assert last.num_cached_tokens == len(prompt) + len(answer) - 1
    assert sum(map(sum, model.steps)) == 4 + len(tokens) - 1
    assert engine.stats.cached_tokens == last.num_cached_tokens


def test_the_same_prompt_again_computes_its_last_token_only():
    model = FakeModel()
    engine = open_engine(model)
    prompt = list(range(1, 11))
    [(first, _)] = run(engine, prompt)
    model.steps.clear()
    [(second, last)] = run(engine, prompt)
    assert second == first
    assert last.num_cached_tokens == 9
    assert model.steps[0] == [1]


def test_a_changed_middle_reuses_what_lies_before_it():
    engine = open_engine()
    prompt = list(range(1, 21))
    run(engine, prompt)
    changed = [*prompt[:15], 40, *prompt[16:]]
    [(tokens, last)] = run(engine, changed)
    assert last.num_cached_tokens == 15
    assert tokens == run(open_engine(), changed)[0][0]


def test_a_shared_start_is_copied_and_costs_the_other_conversation_nothing():
    engine = open_engine()
    system = [1, 2, 3, 4]
    long_turn = [*system, *range(10, 40)]
    run(engine, long_turn)
    [(tokens, last)] = run(engine, [*system, 41])
    assert last.num_cached_tokens == 4
    assert tokens == run(open_engine(), [*system, 41])[0][0]
    [(_, last)] = run(engine, long_turn)
    assert last.num_cached_tokens == len(long_turn) - 1


def test_an_aborted_prompt_is_reported_frees_its_place_and_is_not_computed_further():
    model = FakeModel()
    engine = open_engine(model, max_sequences=1)
    long = engine.submit([1] * 100, GREEDY)
    waiting = engine.submit([2, 3], GREEDY)
    engine.step()
    engine.abort(long)
    model.steps.clear()
    first = engine.step()
    assert [(o.request_id, o.finish_reason) for o in first if o.finish_reason] == [(long, "abort")]
    assert model.steps == [[1]]  # of two: the last is for the next step
    assert drain(engine, [waiting])[0][1].finish_reason == "length"
    [(_, again)] = run(engine, [1] * 100)
    assert again.num_cached_tokens == 4  # the chunk read before the abort was kept


def test_a_waiting_request_can_be_aborted_and_an_unknown_one_is_ignored():
    engine = open_engine(max_sequences=1)
    first, second = engine.submit([1], GREEDY), engine.submit([2], GREEDY)
    engine.abort(second)
    engine.abort(second)
    engine.abort(999)
    results = drain(engine, [first, second])
    assert [last.finish_reason for _, last in results] == ["length", "abort"]
    assert engine.num_running == engine.num_waiting == 0


def test_a_crash_in_one_request_is_that_requests_error_alone():
    engine = open_engine(FakeModel(poison=49))
    prompts = [[1, 2], [3, 49], list(range(5, 15))]
    results = run(engine, *prompts)
    assert [last.finish_reason for _, last in results] == ["length", "error", "length"]
    assert isinstance(results[1][1].error, ArithmeticError)
    assert [results[i][0] for i in (0, 2)] == [run(open_engine(), prompts[i])[0][0] for i in (0, 2)]
    assert run(engine, [1, 2])[0][1].finish_reason == "length"


def test_logits_that_are_not_finite_name_the_stored_tensor():
    engine = open_engine(FakeModel(nan=49), find_non_finite=lambda: "model.norm.weight")
    [(tokens, last)] = run(engine, [49, 1])
    assert (tokens, last.finish_reason) == ([], "error")
    assert isinstance(last.error, NonFiniteError)
    assert "model.norm.weight" in str(last.error)
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        engine.logits([1, 49])


def test_finite_logits_never_search_the_checkpoint():
    def search():
        raise AssertionError("searched")

    run(open_engine(find_non_finite=search), [1, 2])


def test_generate_yields_the_answer_and_frees_its_place():
    engine = open_engine(max_sequences=1)
    prompt = stopping_prompt()
    assert list(engine.generate(prompt, SamplingParams(temperature=0))) == greedy_tokens(prompt, 20)
    assert engine.num_running == engine.num_waiting == 0
    assert engine.step() == []


def test_generators_read_in_turn_do_not_take_each_others_tokens():
    engine = open_engine()
    submitted = engine.submit([9, 9], GREEDY)
    pairs = list(zip(engine.generate([1], GREEDY), engine.generate([2], GREEDY), strict=True))
    assert [a for a, _ in pairs] == run(open_engine(), [1])[0][0]
    assert [b for _, b in pairs] == run(open_engine(), [2])[0][0]
    assert drain(engine, [submitted])[0][0] == run(open_engine(), [9, 9])[0][0]


def test_a_generator_closed_early_or_never_started_frees_its_place():
    engine = open_engine(max_sequences=1)
    engine.generate([1, 2], GREEDY)
    answer = engine.generate([1, 2], GREEDY)
    next(answer)
    answer.close()
    assert engine.num_running == engine.num_waiting == 0
    assert engine.step() == []


def test_generate_raises_what_made_the_request_fail():
    with pytest.raises(ArithmeticError):
        list(open_engine(FakeModel(poison=49)).generate([49], GREEDY))


def test_an_interrupted_step_leaves_the_engine_usable():
    class Interrupted(FakeModel):
        def forward(self, spans):
            if len(self.steps) == 3:
                self.steps.append([])
                raise KeyboardInterrupt
            return super().forward(spans)

    engine = open_engine(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate([1] * 9, GREEDY))
    assert engine.num_running == 0
    assert run(engine, [1] * 9)[0][0] == run(open_engine(), [1] * 9)[0][0]


def test_logits_are_those_after_every_token():
    token_ids = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    logits = open_engine().logits(np.array(token_ids))
    assert logits.dtype == np.float32
    expected = [fake_logits(token_ids[: i + 1]) for i in range(len(token_ids))]
    np.testing.assert_array_equal(logits, expected)


def test_statistics_count_what_was_computed():
    engine = open_engine()
    before = engine.stats
    run(engine, [1] * 10)
    spent = engine.stats - before
    assert (spent.prefill_tokens, spent.decode_tokens, spent.cached_tokens) == (10, 7, 0)
    assert spent.prefill_tokens_per_s > 0 and spent.decode_tokens_per_s > 0
    assert engine.stats - engine.stats == before


@pytest.mark.parametrize(
    ("prompt", "numbers"),
    [
        ([], "empty"),
        ([1, 50], "50.*49"),
        ([-1], "-1.*49"),
        ([1.0], "1.0"),
        ([True], "True"),
        (["a" * 10**6], "'aaa"),
        pytest.param([10**5000], "an integer of 16610 bits", id="a-huge-id"),
        ([1] * 200, "200 tokens"),
    ],
)
def test_a_prompt_the_model_cannot_read_is_an_error_with_its_numbers(prompt, numbers):
    engine = open_engine()
    for call in (engine.submit, engine.generate):
        with pytest.raises(RequestError, match=numbers) as caught:
            call(prompt, GREEDY)
        assert len(str(caught.value)) < 200
    assert engine.num_waiting == 0


def test_the_overflow_message_has_the_wording_clients_look_for():
    with pytest.raises(ContextLengthError) as caught:
        open_engine(context=100).submit([1] * 250)
    assert str(caught.value) == (
        "This model's maximum context length is 100 tokens. However, your request resulted in 250 "
        "tokens (prompt is too long: 250 tokens > 100 maximum)."
    )
    assert (caught.value.num_tokens, caught.value.context) == (250, 100)


def test_sampling_options_beyond_the_vocabulary_are_errors():
    for params in (SamplingParams(logit_bias={50: 1}), SamplingParams(stop_token_ids=(50,))):
        with pytest.raises(RequestError, match="token id 50"):
            open_engine().submit([1], params)


def test_a_closed_engine_ends_its_requests_and_takes_no_more():
    engine = open_engine()
    request_id = engine.submit([1], GREEDY)
    engine.step()
    engine.close()
    engine.close()
    outputs = engine.step()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [(request_id, "abort")]
    with pytest.raises(RequestError, match="closed"):
        engine.submit([1], GREEDY)

"""Pages shared among requests: a prefix is computed once, and nothing is lost when they run out."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from engine.cache_invariants import check_pages
from engine.driver import GREEDY, drain, open_engine, run
from engine.fake_model import FakeModel, greedy_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_k2.engine import SamplingParams
from hybrid_k2.engine.disk_cache import DiskCache
from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.errors import ContextLengthError, RequestError
from hybrid_k2.model.pages import PAGE_TOKENS

LONG = [1 + i % 40 for i in range(300)]


def answer(prompt, num_tokens=8):
    return greedy_tokens(prompt, num_tokens, ignore_eos=True)


def open_paged(num_pages, ram_pages=0, disk=None, **changes):
    """An engine over so few pages, with the model that counts its work."""
    model = FakeModel(num_pages=num_pages)
    ram_bytes = ram_pages * model.pool.page_bytes
    prefix_cache = PrefixCache(model.pool, ram_bytes=ram_bytes, disk=disk and disk(model.pool))
    changes = {"context": 10_000, "prefill_chunk": 64, **changes}
    return open_engine(model, prefix_cache=prefix_cache, **changes), model


def computed(model):
    return sum(map(sum, model.steps))


@pytest.mark.parametrize("num_choices", [2, 4])
def test_choices_of_one_prompt_that_start_together_compute_it_once(num_choices):
    engine, model = open_paged(64, max_sequences=num_choices)
    results = run(engine, *[LONG] * num_choices)
    assert {tuple(tokens) for tokens, _ in results} == {tuple(answer(LONG))}
    # Each computes the prompt's last page, which is not whole, and its own answer.
    own = num_choices * (len(LONG) % PAGE_TOKENS + 7)
    assert computed(model) == len(LONG) // PAGE_TOKENS * PAGE_TOKENS + own
    cached = sum(last.num_cached_tokens for _, last in results)
    assert cached == (num_choices - 1) * (len(LONG) // PAGE_TOKENS) * PAGE_TOKENS


def test_a_request_joins_while_another_still_reads_the_same_prompt():
    engine, model = open_paged(64)
    first = engine.submit(LONG, GREEDY)
    for _ in range(3):
        engine.step()
    second = engine.submit([*LONG[:250], 45, 46], GREEDY)
    check_pages(engine)
    results = drain(engine, [first, second])
    assert results[1][0] == answer([*LONG[:250], 45, 46])
    assert results[1][1].num_cached_tokens >= 3 * PAGE_TOKENS
    assert computed(model) <= 300 + 7 + 64 + 60 + 7


def test_what_is_shared_takes_the_pool_once():
    engine, _ = open_paged(64)
    run(engine, LONG)
    ids = [engine.submit([*LONG, 40 + i], GREEDY) for i in range(3)]
    engine.step()
    (memory,) = engine.cache_stats().tiers
    assert memory.pages_in_use <= 5 + 3
    drain(engine, ids)


def test_the_prefix_used_longest_ago_goes_first_and_from_its_end():
    engine, _ = open_paged(8)
    one, two, three = ([base] * 127 for base in (1, 2, 3))
    for prompt in (one, two, one):
        run(engine, prompt, params=SamplingParams(temperature=0, max_tokens=1))
    run(engine, three * 2, params=SamplingParams(temperature=0, max_tokens=1))
    # Of 8 pages the last needed 4; `two` gave up what it needed, from its end.
    cached = [engine._prefix_cache._match(_ids(prompt), "")[1] for prompt in (one, two)]
    assert cached == [127, 127]
    run(engine, [4] * 60, params=SamplingParams(temperature=0, max_tokens=1))
    cached = [engine._prefix_cache._match(_ids(prompt), "")[1] for prompt in (one, two)]
    assert cached == [127, 64]
    check_pages(engine)


def _ids(prompt):
    return np.asarray(prompt, dtype=np.int32)


def test_what_a_running_request_holds_is_not_evicted_and_can_still_be_shared():
    engine, _ = open_paged(12)
    talker = engine.submit(LONG, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    for _ in range(8):
        engine.step()
    for base in (8, 9):
        run(engine, [base] * 300)  # all pages but the talker's, twice
    check_pages(engine)
    [(_, last)] = run(engine, [*LONG[:256], 5])
    assert last.num_cached_tokens == 256
    drain(engine, [talker])


def test_of_two_pages_of_the_same_tokens_one_is_kept_and_both_use_it():
    pool = FakeModel(num_pages=4).pool
    prefix_cache, caches = PrefixCache(pool), [pool.new_cache(), pool.new_cache()]
    for cache in caches:
        cache.reserve(64)
        cache.length = 64
        prefix_cache.keep(LONG[:64], cache)
    assert caches[0].page_ids == caches[1].page_ids
    assert pool.num_free == 3
    caches[0].release()
    caches[1].reserve(256)  # the second one's own, after the shared page
    assert not prefix_cache._evict(1)
    caches[1].release()
    assert (prefix_cache._evict(1), pool.num_free) == (True, 4)


def test_requests_that_do_not_fit_together_wait_or_start_again_and_answer_the_same():
    engine, _ = open_paged(10, max_sequences=4)
    prompts = [[base] * 150 for base in (1, 2, 3, 4)]
    params = SamplingParams(temperature=0, max_tokens=250, ignore_eos=True)
    results = run(engine, *prompts, params=params)
    for prompt, (tokens, last) in zip(prompts, results, strict=True):
        assert tokens == answer(prompt, 250)
        assert last.finish_reason == "length"
    assert engine.stats.preemptions > 0
    check_pages(engine)


def test_the_oldest_request_is_never_set_back():
    engine, _ = open_paged(9, max_sequences=4)
    params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    ids = [engine.submit([base] * 100, params) for base in (1, 2, 3)]
    ended = []
    while len(ended) < 3:
        ended += [o.request_id for o in engine.step() if o.finish_reason]
        check_pages(engine)
    assert ended[0] == ids[0]
    assert engine.stats.preemptions > 0


def test_a_preempted_request_samples_no_token_twice():
    engine, _ = open_paged(6, max_sequences=2)
    params = SamplingParams(temperature=1.5, seed=5, max_tokens=200, ignore_eos=True)
    together = run(engine, [1] * 60, [2] * 60, params=params)
    assert engine.stats.preemptions > 0
    alone = [run(open_paged(6)[0], prompt, params=params)[0] for prompt in ([1] * 60, [2] * 60)]
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]


def test_a_prompt_larger_than_the_pool_is_refused_with_the_numbers():
    engine, _ = open_paged(3)
    with pytest.raises(ContextLengthError, match=r"192 tokens.*200 tokens"):
        engine.submit([1] * 200, GREEDY)
    [(tokens, last)] = run(engine, [1] * 190, params=SamplingParams(temperature=0, ignore_eos=True))
    assert (len(tokens), last.finish_reason) == (2, "length")


def test_one_request_may_fill_the_whole_pool_though_its_pages_are_kept():
    engine, _ = open_paged(3)
    params = SamplingParams(temperature=0, ignore_eos=True)
    [(first, _)] = run(engine, [1] * 100, params=params)
    assert len(first) == 92
    [(second, _)] = run(engine, [*[1] * 100, *first[:40], 2], params=params)
    assert second == answer([*[1] * 100, *first[:40], 2], 51)
    check_pages(engine)


def test_a_short_request_is_answered_while_a_long_prompt_is_read_in_a_full_pool():
    engine, _ = open_paged(24, prefill_chunk=64)
    run(engine, [9] * 600)  # kept pages fill what the others do not need
    slow = engine.submit([1] * 1000, GREEDY)
    engine.step()
    quick = engine.submit([2, 3], GREEDY)
    ended = [o.request_id for _ in range(10) for o in engine.step() if o.finish_reason]
    assert ended == [quick]
    assert drain(engine, [slow])[0][0] == answer([1] * 1000)


def test_teacher_forcing_makes_room_but_takes_no_page_of_a_running_request():
    engine, _ = open_paged(4)
    run(engine, [1] * 190)
    assert engine.logits([2] * 200).shape[0] == 200
    talker = engine.submit([3] * 100, GREEDY)
    engine.step()
    with pytest.raises(RequestError, match="4 pages of KV cache, 1 more"):
        engine.logits([2] * 200)
    assert drain(engine, [talker])[0][0] == answer([3] * 100)
    check_pages(engine)


def test_prefixes_are_shared_within_a_salt_only():
    engine, _ = open_paged(32)
    cached = []
    for salt in ("alice", "bob", "alice", ""):
        request_id = engine.submit(LONG, GREEDY, cache_salt=salt)
        cached.append(drain(engine, [request_id])[0][1].num_cached_tokens)
    assert cached == [0, 0, 299, 0]


def test_what_a_failed_request_computed_is_forgotten_and_nothing_before_it():
    model = FakeModel(nan=49)
    engine = open_engine(model, prefill_chunk=64, context=1000)
    run(engine, LONG)
    bad = [*LONG[:200], 49, *[3] * 200]
    [(_, last)] = run(engine, bad)
    assert last.finish_reason == "error"
    check_pages(engine)
    [(tokens, last)] = run(engine, [*LONG, 5])
    assert (tokens, last.num_cached_tokens) == (answer([*LONG, 5]), 300)
    model.nan = None
    [(tokens, last)] = run(engine, bad)
    assert (tokens, last.num_cached_tokens) == (answer(bad), 200)


@pytest.mark.parametrize("ram_pages", [4, 100])
def test_pages_evicted_to_ram_come_back_without_being_computed(ram_pages):
    engine, model = open_paged(6, ram_pages=ram_pages)
    run(engine, LONG)
    run(engine, [9] * 300)
    check_pages(engine)
    model.steps.clear()
    [(tokens, last)] = run(engine, LONG)
    assert tokens == answer(LONG)
    assert last.num_cached_tokens >= PAGE_TOKENS * 4
    assert computed(model) == len(LONG) - last.num_cached_tokens + 7
    _, ram = engine.cache_stats().tiers
    assert ram.hit_tokens > 0 and ram.pages_cached <= ram_pages
    check_pages(engine)


def test_clearing_forgets_everything_and_disturbs_nobody():
    engine, _ = open_paged(32, ram_pages=10)
    run(engine, LONG)
    runs = engine.submit([*LONG, 7], GREEDY)
    engine.step()
    engine.clear_cache()
    check_pages(engine)
    assert drain(engine, [runs])[0][0] == answer([*LONG, 7])[1:]  # one came with the step above
    check_pages(engine)
    engine.clear_cache()
    assert [tier.pages_cached for tier in engine.cache_stats().tiers] == [0, 0]
    assert run(engine, LONG)[0][1].num_cached_tokens == 0


def test_statistics_add_up():
    engine, model = open_paged(32)
    run(engine, LONG)
    run(engine, LONG)
    stats = engine.cache_stats()
    (memory,) = stats.tiers
    assert (stats.prompt_tokens, stats.hit_tokens) == (600, 299)
    assert (memory.pages_in_use, memory.pages_cached, memory.pages_total) == (0, 5, 32)
    assert memory.bytes_used == 5 * stats.page_bytes == 5 * model.pool.page_bytes
    assert stats.page_tokens == PAGE_TOKENS
    assert json.loads(json.dumps(asdict(stats)))["tiers"][0]["name"] == "memory"


def test_running_requests_say_how_far_they_are():
    engine, _ = open_paged(32)
    request_id = engine.submit(LONG, GREEDY)
    engine.step()
    (progress,) = engine.running
    assert (progress.request_id, progress.num_prompt_tokens) == (request_id, 300)
    assert (progress.num_computed_tokens, progress.num_generated) == (64, 0)
    drain(engine, [request_id])
    assert engine.running == []


prompts = st.tuples(st.sampled_from([1, 2]), st.integers(1, 260), st.integers(0, 3)).map(
    lambda parts: [parts[0]] * (parts[1] // 2) + [3] * (parts[1] - parts[1] // 2) + [parts[2]]
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts, st.integers(1, 150), st.sampled_from(["", "salt"])),
        st.tuples(st.just("step"), st.integers(1, 8)),
        st.tuples(st.just("abort"), st.integers(0, 5)),
        st.tuples(st.just("clear")),
    ),
    max_size=25,
)


@pytest.mark.parametrize("tiers", ["pool", "ram", "disk"])
@settings(max_examples=25)
@given(actions=actions, num_pages=st.integers(7, 14))
def test_any_history_answers_as_without_a_cache_and_loses_no_page(
    tiers, actions, num_pages, tmp_path_factory
):
    directory = tmp_path_factory.mktemp("cache") if tiers == "disk" else None
    engine, model = open_paged(
        num_pages,
        ram_pages=5 if tiers == "ram" else 0,
        disk=directory and (lambda pool: DiskCache(directory, 1 << 20, {}, pool)),
        prefill_chunk=96,
    )
    asked, tokens, reasons = {}, {}, {}

    def step():
        for output in engine.step():
            if output.token_id is not None:
                tokens[output.request_id].append(output.token_id)
            if output.finish_reason is not None:
                reasons[output.request_id] = output.finish_reason
        check_pages(engine)

    for action, *arguments in actions:
        if action == "submit":
            prompt, max_tokens, salt = arguments
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            request_id = engine.submit(prompt, params, cache_salt=salt)
            asked[request_id], tokens[request_id] = (prompt, max_tokens), []
        elif action == "abort":
            engine.abort(arguments[0])
        elif action == "clear":
            engine.clear_cache()
        else:
            for _ in range(arguments[0]):
                step()
    for _ in range(5000):
        if len(reasons) == len(asked):
            break
        step()
    for request_id, (prompt, max_tokens) in asked.items():
        expected = answer(prompt, min(max_tokens, 64 * num_pages - len(prompt)))
        if reasons[request_id] == "abort":
            expected = expected[: len(tokens[request_id])]
        assert tokens[request_id] == expected
    engine.close()
    assert model.pool.num_free == num_pages

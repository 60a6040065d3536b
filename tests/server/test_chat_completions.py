"""/v1/chat/completions as OpenAI's own client sees it, over a real socket."""

import math
import threading

import openai
import pytest
from server.scripted_engine import CRASH, ENDLESS, ScriptedEngine

HELLO = [{"role": "user", "content": "hello"}]
ENDLESSLY = [{"role": "user", "content": ENDLESS}]


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_an_answer_comes_whole_with_usage(serve):
    engine = ScriptedEngine()
    answer = serve(engine).client().chat.completions.create(model="k2", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "k2"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "You said: hello")
    assert choice.finish_reason == "stop"
    num_prompt = len(engine.template.render(HELLO))
    num_answer = len(engine.tokenizer.encode("You said: hello"))
    assert answer.usage.prompt_tokens == num_prompt
    assert answer.usage.completion_tokens == num_answer
    assert answer.usage.total_tokens == num_prompt + num_answer
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_gives_the_same_answer_in_order(serve):
    client = serve(ScriptedEngine()).client()
    chunks = list(client.chat.completions.create(model="k2", messages=HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == "You said: hello"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_a_streams_text_comes_while_the_answer_goes_on(serve):
    server = serve(ScriptedEngine(context=1_000_000))
    stream = server.client().chat.completions.create(model="k2", messages=ENDLESSLY, stream=True)
    assert any(chunk.choices[0].delta.content for chunk in stream)
    assert server.engine.core.ended.empty()
    stream.close()


def test_a_stream_ends_with_usage_where_asked(serve):
    client = serve(ScriptedEngine()).client()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    last = list(client.chat.completions.create(model="k2", messages=HELLO, **options))[-1]
    whole = client.chat.completions.create(model="k2", messages=HELLO)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_usage_says_what_the_prefix_cache_saved(serve):
    client = serve(ScriptedEngine()).client()
    first = client.chat.completions.create(model="k2", messages=HELLO)
    turn = [*HELLO, {"role": "assistant", "content": "You said: hello"}]
    turn.append({"role": "user", "content": "again"})
    second = client.chat.completions.create(model="k2", messages=turn)
    assert second.choices[0].message.content == "You said: again"
    cached = second.usage.prompt_tokens_details.cached_tokens
    # The end-of-turn token was the only one sampled and not computed.
    assert cached == first.usage.total_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(serve, stream):
    server = serve(ScriptedEngine({"count": ["one two three", ENDLESS]}, context=1_000_000))
    answer = server.client().chat.completions.create(
        model="k2",
        messages=[{"role": "user", "content": "count"}],
        stop=["zzz", " thr"],
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == ("one two", "stop")
    else:
        choice = answer.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("one two", "stop")
    assert server.next_end() == "abort"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_the_length_asked_for(serve, name):
    client = serve(ScriptedEngine()).client()
    answer = client.chat.completions.create(model="k2", messages=ENDLESSLY, **{name: 5})
    assert answer.choices[0].message.content == "abcde"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_characters_of_many_tokens_arrive_whole(serve):
    reply = "\U0001f44d\U0001f3fd \u4f60\u597d \U00010348"
    client = serve(ScriptedEngine({"hello": [reply]})).client()
    stream = client.chat.completions.create(model="k2", messages=HELLO, stream=True)
    assert text_of(stream) == reply


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_apart_from_content(serve, stream):
    replies = {"hello": ["<think>", "He greets.", "</think>", "Hi!"]}
    client = serve(ScriptedEngine(replies, thinking=True)).client()
    answer = client.chat.completions.create(model="k2", messages=HELLO, stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        content = "".join(delta.content or "" for delta in deltas)
        parts = [delta.model_extra or {} for delta in deltas]
    else:
        message = answer.choices[0].message
        content, parts = message.content, [message.model_extra]
    assert content == "Hi!"
    for name in ("reasoning_content", "reasoning"):  # everyone's and vLLM's
        assert "".join(part.get(name, "") for part in parts) == "He greets."


def test_reasoning_can_be_given_under_one_name_only(serve):
    engine = ScriptedEngine({"hello": ["<think>", "Hm.", "</think>", "Hi!"]}, thinking=True)
    client = serve(engine, reasoning_fields=("reasoning",)).client()
    answer = client.chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.model_extra == {"reasoning": "Hm."}
    # <think>, the thought and </think>, which ends it
    num_thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert num_thought == 1 + len(engine.tokenizer.encode("Hm."))


def test_a_stream_counts_all_the_time_where_asked(serve):
    client = serve(ScriptedEngine()).client()
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model="k2", messages=HELLO, stream=True, stream_options=options
    )
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts) and counts[0] == 0
    whole = client.chat.completions.create(model="k2", messages=HELLO)
    assert counts[-1] == whole.usage.completion_tokens


def test_timings_have_llama_cpps_names(serve):
    client = serve(ScriptedEngine()).client()
    client.chat.completions.create(model="k2", messages=HELLO)
    answer = client.chat.completions.create(model="k2", messages=HELLO)
    usage, timings = answer.usage, answer.timings
    assert timings["cache_n"] == usage.prompt_tokens_details.cached_tokens > 0
    assert timings["prompt_n"] + timings["cache_n"] == usage.prompt_tokens
    assert timings["predicted_n"] == usage.completion_tokens
    assert timings["prompt_ms"] > 0 and timings["predicted_per_second"] > 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.chat.completions.create(model="k2", messages=HELLO, **options)
    assert last.timings.keys() == timings.keys()


def test_penalties_and_least_lengths_reach_the_engine(serve, monkeypatch):
    engine = ScriptedEngine()
    seen = []
    submit = engine.core.submit
    monkeypatch.setattr(
        engine.core, "submit", lambda ids, p, **_: (seen.append(p), submit(ids, p))[1]
    )
    given = {
        "frequency_penalty": 0.25,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.25,
        "min_tokens": 3,
        "min_p": 0.125,
        "top_k": 7,
        "top_p": 0.75,
        "seed": 5,
        "ignore_eos": False,
        "logit_bias": {"11": 2},
    }
    client = serve(engine, max_new_tokens=20).client()
    client.chat.completions.create(model="k2", messages=HELLO, extra_body=given)
    [params] = seen
    assert {name: getattr(params, name) for name in given} == {**given, "logit_bias": {11: 2.0}}
    assert params.max_tokens == 20


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_with_bytes_and_alternatives(serve, stream):
    engine = ScriptedEngine()
    answer = (
        serve(engine)
        .client()
        .chat.completions.create(
            model="k2", messages=HELLO, logprobs=True, top_logprobs=3, stream=stream
        )
    )
    parts = list(answer) if stream else [answer]
    entries = [
        entry
        for part in parts
        if part.choices[0].logprobs
        for entry in part.choices[0].logprobs.content or []
    ]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "You said: hello"
    # One logit of 20 among zeros.
    expected = -math.log1p((engine.tokenizer.vocab_size - 1) * math.exp(-20))
    for entry in entries:
        assert entry.logprob == pytest.approx(expected, abs=1e-9)
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token


def test_several_choices_are_answered_at_once(serve):
    client = serve(ScriptedEngine()).client()
    answer = client.chat.completions.create(model="k2", messages=HELLO, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.message.content for choice in answer.choices} == {"You said: hello"}
    stream = client.chat.completions.create(model="k2", messages=HELLO, n=2, stream=True)
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "You said: hello", 1: "You said: hello"}


def test_a_seed_repeats_the_answer_and_choices_differ(serve):
    def ask(seed):
        answer = client.chat.completions.create(
            model="k2", messages=ENDLESSLY, temperature=50, seed=seed, max_tokens=40, n=2
        )
        return [choice.message.content for choice in answer.choices]

    client = serve(ScriptedEngine()).client()
    first, second = ask(4)
    assert first != second
    assert ask(4) == [first, second]
    assert ask(6) != [first, second]


def test_each_choice_ends_once_though_a_stop_string_ends_it_before_the_engine_knows(serve):
    client = serve(ScriptedEngine()).client()
    options = {"temperature": 50, "n": 2, "max_tokens": 200, "stop": ["e"], "stream": True}
    for seed in range(5):
        stream = client.chat.completions.create(
            model="k2", messages=ENDLESSLY, seed=seed, **options
        )
        ends = [c.choices[0].index for c in stream if c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1]


def test_lists_of_parts_developers_and_tools_reach_the_template(serve):
    engine = ScriptedEngine()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    client = serve(engine).client()
    answer = client.chat.completions.create(model="k2", messages=messages, tools=tools)
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.usage.prompt_tokens == len(engine.template.render(messages, tools))
    unused = client.chat.completions.create(
        model="k2", messages=messages, tools=tools, tool_choice="none"
    )
    assert unused.usage.prompt_tokens == len(engine.template.render(messages))


def test_unknown_fields_are_ignored_with_one_warning(serve, caplog):
    client = serve(ScriptedEngine()).client()
    for _ in range(2):
        body = {"frobnicate": 3, "user": "me"}
        client.chat.completions.create(model="k2", messages=HELLO, extra_body=body)
    warnings = [r.getMessage() for r in caplog.records if "not known" in r.getMessage()]
    assert len(warnings) == 1 and "frobnicate" in warnings[0]


def test_null_means_left_out(serve):
    names = ["temperature", "top_p", "stop", "seed", "max_tokens", "tools", "n", "logprobs"]
    client = serve(ScriptedEngine()).client()
    body = dict.fromkeys(names)
    answer = client.chat.completions.create(model="k2", messages=HELLO, extra_body=body)
    assert answer.choices[0].message.content == "You said: hello"


def test_two_clients_are_answered_at_once(serve):
    server = serve(ScriptedEngine(context=1_000_000))
    endless = server.client().chat.completions.create(model="k2", messages=ENDLESSLY, stream=True)
    next(endless)
    answer = server.client().chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello"
    assert server.next_end() == "stop"  # the short one ended first
    endless.close()


def test_a_client_that_leaves_a_stream_frees_its_place(serve):
    server = serve(ScriptedEngine(max_sequences=1, context=1_000_000))
    stream = server.client().chat.completions.create(model="k2", messages=ENDLESSLY, stream=True)
    next(stream)
    stream.close()
    assert server.next_end() == "abort"
    answer = server.client().chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello"


def test_a_client_that_gives_up_waiting_frees_its_place_within_one_step(serve):
    engine = ScriptedEngine(max_sequences=1, context=1_000_000)
    server = serve(engine)
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=2).chat.completions.create(model="k2", messages=ENDLESSLY)
    assert server.next_end() == "abort"


def test_a_client_that_leaves_while_its_prompt_is_read_ends_the_reading(serve, monkeypatch):
    engine = ScriptedEngine(prefill_chunk=4)
    server = serve(engine)
    engine.model.gate.clear()
    noticed = threading.Event()
    abort = server.service.thread.abort
    monkeypatch.setattr(server.service.thread, "abort", lambda *a: (abort(*a), noticed.set()))
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=2).chat.completions.create(
            model="k2", messages=[{"role": "user", "content": "x" * 500}]
        )
    assert noticed.wait(20)
    engine.model.gate.set()
    assert server.next_end() == "abort"
    assert engine.core.stats.prefill_tokens == 4


def test_a_crash_in_one_request_is_that_requests_500(serve, caplog):
    server = serve(ScriptedEngine())
    client = server.client()
    other = client.chat.completions.create(
        model="k2", messages=ENDLESSLY, stream=True, max_tokens=600
    )
    next(other)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="k2", messages=[{"role": "user", "content": CRASH}])
    assert "secret" not in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(text_of(other)) == 600
    answer = client.chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello"


def test_a_crash_within_a_stream_is_an_error_event(serve):
    client = serve(ScriptedEngine()).client()
    crash = [{"role": "user", "content": CRASH}]
    stream = client.chat.completions.create(model="k2", messages=crash, stream=True)
    with pytest.raises(openai.APIError, match="internal error"):
        list(stream)


def test_a_crash_of_the_engine_ends_what_is_in_flight_and_nothing_else(serve, monkeypatch):
    engine = ScriptedEngine()
    server = serve(engine)
    step = engine.core.step

    def broken_step():
        monkeypatch.setattr(engine.core, "step", step)
        raise MemoryError("broken")

    monkeypatch.setattr(engine.core, "step", broken_step)
    with pytest.raises(openai.InternalServerError):
        server.client().chat.completions.create(model="k2", messages=HELLO)
    answer = server.client().chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello"
    assert engine.core.num_running == 0


def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve):
    engine = ScriptedEngine(max_sequences=1)
    server = serve(engine, max_waiting=0)
    engine.model.gate.clear()
    stream = server.client().chat.completions.create(model="k2", messages=HELLO, stream=True)
    with pytest.raises(openai.RateLimitError) as caught:
        server.client().chat.completions.create(model="k2", messages=HELLO)
    assert int(caught.value.response.headers["retry-after"]) > 0
    engine.model.gate.set()
    assert text_of(stream) == "You said: hello"
    answer = server.client().chat.completions.create(model="k2", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello"


def test_a_request_that_takes_too_long_is_a_504(serve):
    engine = ScriptedEngine()
    server = serve(engine, request_timeout_s=1)
    engine.model.gate.clear()
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(model="k2", messages=HELLO)
    assert caught.value.status_code == 504
    engine.model.gate.set()
    assert server.next_end() == "abort"


def test_silence_is_filled_with_comments(serve):
    engine = ScriptedEngine()
    engine.model.gate.clear()
    server = serve(engine, keep_alive_s=0.02)
    with server.client().chat.completions.with_streaming_response.create(
        model="k2", messages=ENDLESSLY, stream=True, max_tokens=3
    ) as response:
        lines = iter(response.iter_lines())
        assert next(lines).startswith("data: ")
        assert any(line == ": keep-alive" for line in lines)
        engine.model.gate.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 3}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"logit_bias": {"many": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "99999"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
    ids=str,
)
def test_a_wrong_value_is_a_400_that_names_it(serve, body, param):
    client = serve(ScriptedEngine()).client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="k2", messages=HELLO, extra_body=body)
    error = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


def test_a_prompt_beyond_the_context_is_a_400_that_clients_recognise(serve):
    engine = ScriptedEngine(context=100)
    messages = [{"role": "user", "content": "hello world " * 100}]
    with pytest.raises(openai.BadRequestError) as caught:
        serve(engine).client().chat.completions.create(model="k2", messages=messages)
    error = caught.value.body
    assert caught.value.code == "context_length_exceeded"
    assert error["n_ctx"] == 100 and error["n_prompt_tokens"] > 100
    assert "maximum context length is 100 tokens" in error["message"]


def test_another_models_name_is_a_404(serve):
    client = serve(ScriptedEngine()).client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "k2" in caught.value.body["message"]


@pytest.mark.parametrize("thread_count", [4])
def test_more_clients_than_places_are_all_answered(serve, thread_count):
    server, texts = serve(ScriptedEngine()), []

    def ask(index):
        messages = [{"role": "user", "content": f"number {index}"}]
        answer = server.client().chat.completions.create(model="k2", messages=messages)
        texts.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(texts) == [f"You said: number {i}" for i in range(thread_count)]

"""/v1/messages as Anthropic's own client sees it, over a real socket."""

import json
import urllib.request

import anthropic
import pytest
from server.scripted_engine import CRASH, ENDLESS, ScriptedEngine

HELLO = [{"role": "user", "content": "hello"}]
ENDLESSLY = [{"role": "user", "content": ENDLESS}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"name": "get_weather", "description": "Says it.", "input_schema": SCHEMA},
    {"name": "get-time", "input_schema": {"type": "object"}},
]
OPENAI_TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Says it.", "parameters": SCHEMA},
    },
    {"type": "function", "function": {"name": "get-time", "parameters": {"type": "object"}}},
]

B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
b, a, e = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def call(name, arguments, counter=0):
    return [b, f"functions.{name}:{counter}", a, arguments, e]


CALL = {"type": "tool_use", "id": "x", "name": "get-time", "input": {}}
TWO = ["Let me see.", B, *call("get_weather", '{"city": "北京"}'), *call("get-time", "", 1), E]


def create(server, stream=False, messages=HELLO, **options):
    """The whole message, as the client puts it together where it is streamed."""
    options = {"model": "k2", "max_tokens": 100, "messages": messages, **options}
    messages = server.anthropic().messages
    if not stream:
        return messages.create(**options)
    with messages.stream(**options) as events:
        return events.get_final_message()


def raw_events(server, **body):
    """Every event of a stream, pings too, which the client hides."""
    body = {"model": "k2", "max_tokens": 100, "messages": HELLO, "stream": True, **body}
    request = urllib.request.Request(
        f"{server.url}/v1/messages",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        for line in response:
            if line.startswith(b"event: "):
                name = line[7:].decode().strip()
                event = json.loads(next(response).removeprefix(b"data: "))
                assert event["type"] == name
                yield event


def blocks_of(message):
    return [block.model_dump(exclude_none=True) for block in message.content]


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_an_answer_comes_with_usage_and_reason(serve, stream):
    engine = ScriptedEngine()
    message = create(serve(engine), stream)
    assert (message.type, message.role, message.model) == ("message", "assistant", "k2")
    assert blocks_of(message) == [{"type": "text", "text": "You said: hello"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens == len(engine.template.render(HELLO))
    assert message.usage.output_tokens == len(engine.tokenizer.encode("You said: hello"))
    assert message.usage.cache_read_input_tokens == 0


def test_events_come_in_anthropics_order(serve):
    replies = {"hello": ["<think>", "Hm.", "</think>", *TWO]}
    server = serve(ScriptedEngine(replies, thinking=True))
    events = list(raw_events(server, tools=TOOLS))
    merged = []
    for event in events:
        kind = event.get("delta", {}).get("type") or event["type"]
        if not merged or merged[-1] != kind:
            merged.append(kind)
    block = lambda *deltas: ["content_block_start", *deltas, "content_block_stop"]  # noqa: E731
    assert merged == [
        "message_start",
        "ping",
        *block("thinking_delta", "signature_delta"),
        *block("text_delta"),
        *block("input_json_delta"),
        *block("input_json_delta"),
        "message_delta",
        "message_stop",
    ]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert starts[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert starts[2]["content_block"]["input"] == {}
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_pings_come_while_the_prompt_is_read(serve):
    engine = ScriptedEngine()
    engine.model.gate.clear()
    events = raw_events(serve(engine, keep_alive_s=0.02))
    assert [next(events)["type"] for _ in range(4)] == ["message_start", "ping", "ping", "ping"]
    engine.model.gate.set()
    assert list(events)[-1] == {"type": "message_stop"}


@both
@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_that_was_begun_goes_on(serve, stream, thinking):
    engine = ScriptedEngine({"hello": ["You", " said"]}, thinking=thinking)
    begun = [*HELLO, {"role": "assistant", "content": "You"}]
    message = create(serve(engine), stream, messages=begun)
    assert blocks_of(message) == [{"type": "text", "text": " said"}]
    assert message.usage.input_tokens == len(engine.template.render(begun, (), False)) - 1


@both
def test_thoughts_are_a_block_of_their_own(serve, stream):
    replies = {"hello": ["<think>", "He greets.", "</think>", "Hi!"]}
    message = create(serve(ScriptedEngine(replies, thinking=True)), stream)
    thought, text = message.content
    assert (thought.type, thought.thinking) == ("thinking", "He greets.")
    assert thought.signature
    assert text.text == "Hi!"


@both
def test_calls_are_blocks_with_the_ids_k2_knows(serve, stream):
    message = create(serve(ScriptedEngine({"hello": TWO})), stream, tools=TOOLS)
    assert message.stop_reason == "tool_use"
    text, weather, time = message.content
    assert text.text == "Let me see."
    assert (weather.type, weather.id, weather.name, weather.input) == (
        "tool_use",
        "functions.get_weather:0",
        "get_weather",
        {"city": "北京"},
    )
    assert (time.id, time.input) == ("functions.get-time:1", {})


@both
def test_parallel_calls_can_be_turned_off(serve, stream):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    server = serve(ScriptedEngine({"hello": TWO}))
    message = create(server, stream, tools=TOOLS, tool_choice=choice)
    assert [block.type for block in message.content] == ["text", "tool_use"]


@pytest.mark.parametrize("wrong", ['{"city": "Par', "[1]", '{"a": NaN}', '{"a": "\\ud800"}'])
def test_arguments_that_are_no_object_are_handed_on_and_read_again(serve, wrong):
    engine = ScriptedEngine({"hello": [B, *call("get_weather", wrong), E]})
    server = serve(engine)
    message = create(server, tools=TOOLS)
    [made] = message.content
    assert made.input == {"INVALID_JSON": wrong}
    result = {"type": "tool_result", "tool_use_id": made.id, "content": "No.", "is_error": True}
    history = [*HELLO, {"role": "assistant", "content": blocks_of(message)}]
    answer = create(server, messages=[*history, {"role": "user", "content": [result]}], tools=TOOLS)
    assert answer.content[0].text == "You said: ## Return of functions.get_weather:0\nError: No."
    # The call is in the prompt just as the model wrote it.
    assert answer.usage.cache_read_input_tokens > message.usage.input_tokens + len(wrong)


@both
def test_a_call_cut_by_length_is_not_called_one(serve, stream):
    replies = {"hello": ["Hi.", *call("get_weather", '{"city":"' + "x" * 90)]}
    message = create(serve(ScriptedEngine(replies)), stream, tools=TOOLS, max_tokens=60)
    assert message.stop_reason == "max_tokens"
    # What has been streamed cannot be taken back.
    assert [block.type for block in message.content] == ["text", "tool_use"][: 1 + stream]


@both
def test_a_stop_sequence_is_named(serve, stream):
    server = serve(ScriptedEngine({"hello": ["one two three", ENDLESS]}, context=1_000_000))
    message = create(server, stream, stop_sequences=["zzz", " thr"], max_tokens=20_000)
    assert message.content[0].text == "one two"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " thr")
    assert server.next_end() == "abort"


def test_an_answer_ends_at_max_tokens(serve):
    message = create(serve(ScriptedEngine()), messages=ENDLESSLY, max_tokens=5)
    assert (message.content[0].text, message.stop_reason) == ("abcde", "max_tokens")
    assert message.usage.output_tokens == 5


def test_an_agents_loop_goes_on_from_what_it_has_computed(serve):
    """Foreign ids, results in blocks, text behind them: all of it as OpenAI's messages say it."""
    final = "## Return of functions.get-time:1\nnoon"
    engine = ScriptedEngine({"hello": TWO, final: ["It rains."]})
    server = serve(engine)
    first = create(server, tools=TOOLS)
    results = [
        {
            "type": "tool_result",
            "tool_use_id": "functions.get_weather:0",
            "content": [{"type": "text", "text": "rain"}, {"type": "image", "source": {}}],
        },
        {"type": "tool_result", "tool_use_id": "functions.get-time:1", "content": "noon"},
    ]
    history = [
        *HELLO,
        {"role": "assistant", "content": blocks_of(first)},
        {"role": "user", "content": results},
    ]
    second = create(server, messages=history, tools=TOOLS)
    assert second.content[0].text == "It rains."
    usage = second.usage
    made = [
        {"id": "x", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}},
        {"id": "y", "function": {"name": "get-time", "arguments": "{}"}},
    ]
    said = [
        *HELLO,
        {"role": "assistant", "content": "Let me see.", "tool_calls": made},
        {
            "role": "tool",
            "tool_call_id": "x",
            "content": "rain\n[image left out: this model reads text only]",
        },
        {"role": "tool", "tool_call_id": "y", "content": "noon"},
    ]
    total = len(engine.template.render(said, OPENAI_TOOLS))
    assert usage.input_tokens + usage.cache_read_input_tokens == total
    assert usage.cache_read_input_tokens >= first.usage.input_tokens
    history[2]["content"].append({"type": "text", "text": "hello"})
    assert create(server, messages=history, tools=TOOLS).stop_reason == "tool_use"


def test_system_prompts_reach_the_template_without_what_changes_in_them(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    counts = []
    for changing in ("a1b2c3", "00ff00"):
        billing = f"x-anthropic-billing-header: cc_version=2.1; cch={changing};"
        system = [
            {"type": "text", "text": billing},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ]
        messages = [*HELLO, {"role": "system", "content": f"{billing}\nIt is late."}]
        message = create(server, system=system, messages=[*messages, *HELLO])
        counts.append(message.usage)
    expected = [
        {"role": "system", "content": "Be brief.\nBe kind."},
        *HELLO,
        {"role": "system", "content": "It is late."},
        *HELLO,
    ]
    assert counts[0].input_tokens == len(engine.template.render(expected))
    assert counts[1].cache_read_input_tokens >= 0.95 * counts[0].input_tokens
    plain = create(server, system="Be brief.\nBe kind.", messages=expected[1:])
    assert plain.usage.cache_read_input_tokens >= 0.95 * counts[0].input_tokens


def test_a_document_of_text_is_read_and_news_of_tools_say_nothing(serve):
    document = {"type": "document", "source": {"type": "text", "data": "hello"}}
    content = [document, {"type": "tool_reference", "tool_name": "f"}]
    message = create(serve(ScriptedEngine()), messages=[{"role": "user", "content": content}])
    assert message.content[0].text == "You said: hello"


def test_thoughts_of_earlier_turns_come_back_to_the_template(serve):
    engine = ScriptedEngine({"hello": ["<think>", "Hm.", "</think>", *TWO]}, thinking=True)
    server = serve(engine)
    first = create(server, tools=TOOLS)
    result = {"type": "tool_result", "tool_use_id": "functions.get-time:1", "content": "noon"}
    history = [
        *HELLO,
        {
            "role": "assistant",
            "content": [{"type": "redacted_thinking", "data": "x"}, *blocks_of(first)],
        },
        {"role": "user", "content": [result]},
    ]
    usage = create(server, messages=history, tools=TOOLS).usage
    assert usage.cache_read_input_tokens > first.usage.input_tokens


@pytest.mark.parametrize(
    ("thinking", "settings", "given", "used"),
    [
        (False, {}, 0.5, 0.3),
        (False, {}, 1.0, 0.6),
        (False, {}, None, 0.6),
        (False, {}, 0.0, 0.0),
        (False, {"scale_temperature": False}, 0.5, 0.5),
        (True, {}, 0.5, 0.5),
        (True, {}, None, 1.0),
    ],
)
def test_temperature_is_mapped_as_moonshots_endpoint_does(
    serve, monkeypatch, thinking, settings, given, used
):
    engine = ScriptedEngine(thinking=thinking)
    seen = []
    submit = engine.core.submit
    monkeypatch.setattr(
        engine.core, "submit", lambda ids, p, **_: (seen.append(p), submit(ids, p))[1]
    )
    options = {} if given is None else {"temperature": given}
    body = {"top_p": 0.9, "top_k": 3}
    create(serve(engine, **settings), extra_body={**body, **options})
    [params] = seen
    assert params.temperature == pytest.approx(used)
    assert (params.top_p, params.top_k, params.max_tokens) == (0.9, 3, 100)


def test_tokens_are_counted_as_they_will_be_used(serve):
    engine = ScriptedEngine(context=300)
    server = serve(engine)
    client = server.anthropic()
    count = client.messages.count_tokens(model="k2", messages=HELLO, system="Be.", tools=TOOLS)
    said = [{"role": "system", "content": "Be."}, *HELLO]
    assert count.input_tokens == len(engine.template.render(said, OPENAI_TOOLS))
    long = [{"role": "user", "content": "hello world " * 1000}]
    assert client.messages.count_tokens(model="k2", messages=long).input_tokens > 300


def test_unknown_fields_and_tools_are_ignored_with_one_warning(serve, caplog):
    server = serve(ScriptedEngine())
    for _ in range(2):
        body = {"frobnicate": 3, "context_management": {}, "thinking": {"type": "adaptive"}}
        tools = [{"type": "web_search_20250305", "name": "web_search"}, *TOOLS]
        create(server, extra_body=body, tools=tools)
    warnings = [r.getMessage() for r in caplog.records if "not known" in r.getMessage()]
    assert len(warnings) == 2
    assert "frobnicate" in warnings[0] and "web_search_20250305" in warnings[1]


def test_a_crash_has_anthropics_shape_in_and_before_a_stream(serve):
    server = serve(ScriptedEngine())
    crash = [{"role": "user", "content": CRASH}]
    with pytest.raises(anthropic.InternalServerError) as caught:
        create(server, messages=crash)
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"] == caught.value.request_id
    assert "secret" not in str(caught.value)
    last = list(raw_events(server, messages=crash))[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    with pytest.raises(anthropic.APIStatusError, match="internal error"):
        create(server, stream=True, messages=crash)


def test_a_client_that_leaves_frees_its_place(serve):
    server = serve(ScriptedEngine(max_sequences=1, context=1_000_000))
    stream = server.anthropic().messages.create(
        model="k2", max_tokens=900_000, messages=ENDLESSLY, stream=True
    )
    next(iter(stream))
    stream.close()
    assert server.next_end() == "abort"


def test_a_prompt_beyond_the_context_is_worded_as_claude_code_reads_it(serve):
    messages = [{"role": "user", "content": "hello world " * 100}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 100"):
        create(serve(ScriptedEngine(context=100)), messages=messages)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "missing"),
        ({"messages": [*HELLO, {"role": "assistant", "content": [CALL]}]}, "can be continued"),
        ({"system": [{"type": "text"}]}, "system.0.text"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: demands a call, but there is no tool"),
        ({"tool_choice": {"type": "tool", "name": "get-time"}}, "no tool 'get-time'"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "and no schema"),
        ({"output_config": {"format": "json"}}, "output_config.format"),
    ],
    ids=str,
)
def test_a_wrong_value_is_a_400_that_names_it(serve, body, message):
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(serve(ScriptedEngine()), extra_body=body)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert message in caught.value.body["error"]["message"]


def test_every_refusal_has_anthropics_type(serve):
    server = serve(ScriptedEngine(), api_keys=("secret",))
    with pytest.raises(anthropic.AuthenticationError) as caught:
        create(server)
    assert caught.value.body["error"]["type"] == "authentication_error"
    client = server.anthropic(api_key="secret").messages
    assert client.create(model="k2", max_tokens=9, messages=HELLO).content
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.create(model="claude", max_tokens=9, messages=HELLO)
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert "k2" in caught.value.body["error"]["message"]
    loading = serve(None)
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(loading)
    assert caught.value.status_code == 503
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert int(caught.value.response.headers["retry-after"]) > 0

"""/v1/responses as OpenAI's own client sees it, over a real socket."""

import asyncio

import openai
import pytest
from server.scripted_engine import CRASH, ENDLESS, ScriptedEngine

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
OPENAI_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
b, a, e = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def call(name, arguments, counter=0):
    return [b, f"functions.{name}:{counter}", a, arguments, e]


CALLS = [B, *call("get_weather", '{"city": "Oslo"}'), *call("get_weather", "{}", 1), E]


def create(server, input="hello", stream=False, **options):
    """The Response, as the client puts it together where it is streamed."""
    responses = server.client().responses
    if not stream:
        return responses.create(model="k2", input=input, **options)
    with responses.stream(model="k2", input=input, **options) as events:
        return events.get_final_response()


def events_of(server, input="hello", **options):
    stream = server.client().responses.create(model="k2", input=input, stream=True, **options)
    return list(stream)


def merged(events):
    """The kinds of events in order, neighbours that are equal taken together."""
    kinds = [event.type for event in events]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_an_answer_comes_with_usage(serve, stream):
    engine = ScriptedEngine()
    response = create(serve(engine), stream=stream, instructions="Be brief.")
    assert (response.object, response.status, response.model) == ("response", "completed", "k2")
    assert response.output_text == "You said: hello"
    [item] = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert response.usage.input_tokens == len(engine.template.render(said))
    assert response.usage.output_tokens == len(engine.tokenizer.encode("You said: hello"))
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert response.instructions == "Be brief."


def test_events_come_in_the_order_that_codex_needs(serve):
    replies = {"hello": ["<think>", "Hm.", "</think>", "Let me see.", *CALLS]}
    events = events_of(serve(ScriptedEngine(replies, thinking=True)), tools=[TOOL])
    assert [event.sequence_number for event in events] == list(range(len(events)))

    def text_item(kind):
        part = ["response.content_part.added", f"{kind}.delta", f"{kind}.done"]
        added, done = "response.output_item.added", "response.output_item.done"
        return [added, *part, "response.content_part.done", done]

    arguments = "response.function_call_arguments"
    call_item = [
        "response.output_item.added",
        f"{arguments}.delta",
        f"{arguments}.done",
        "response.output_item.done",
    ]
    assert merged(events) == [
        "response.created",
        "response.in_progress",
        *text_item("response.reasoning_text"),
        *text_item("response.output_text"),
        *call_item,
        *call_item,
        "response.completed",
    ]
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [event.output_index for event in added] == [0, 1, 2, 3]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    assert added[2].item.arguments == "" and done[2].arguments == '{"city": "Oslo"}'
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {item.id for item in done}


@both
def test_reasoning_and_calls_are_items_of_their_own(serve, stream):
    replies = {"hello": ["<think>", "He asks.", "</think>", *CALLS]}
    engine = ScriptedEngine(replies, thinking=True)
    response = create(serve(engine), stream=stream, tools=[TOOL])
    thought, first, second = response.output
    assert (thought.type, thought.summary, thought.content[0].text) == ("reasoning", [], "He asks.")
    assert (first.type, first.name, first.call_id) == (
        "function_call",
        "get_weather",
        "functions.get_weather:0",
    )
    assert (first.arguments, second.arguments) == ('{"city": "Oslo"}', "{}")
    reasoning = len(engine.tokenizer.encode("He asks.")) + 1  # with its marker
    assert response.usage.output_tokens_details.reasoning_tokens == reasoning


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_turns_items_become_the_prompt_the_model_wrote(serve, encrypted):
    """An agent's loop: what the answer computed is found again, reasoning included."""
    final = "## Return of functions.get_weather:1\nsnow"
    replies = {
        "hello": ["<think>", "Hm.", "</think>", "Now:", *CALLS],
        final: ["<think>", "</think>", "It rains."],
    }
    engine = ScriptedEngine(replies, thinking=True)
    server = serve(engine)
    include = ["reasoning.encrypted_content"] if encrypted else []
    first = create(server, tools=[TOOL], store=False, include=include)
    items = [item.model_dump(exclude_none=True) for item in first.output]
    if encrypted:  # Codex sends this and no text
        assert items[0].pop("content")
        assert items[0]["encrypted_content"]
    outputs = [
        {"type": "function_call_output", "call_id": "functions.get_weather:0", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "functions.get_weather:1",
            "output": [{"type": "input_text", "text": "snow"}],
        },
    ]
    user = {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    second = create(server, [user, *items, *outputs], tools=[TOOL], store=False)
    assert second.output_text == "It rains."
    calls = [
        {"id": "x", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "y", "function": {"name": "get_weather", "arguments": "{}"}},
    ]
    said = [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": "Now:",
            "reasoning_content": "Hm.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "x", "content": "rain"},
        {"role": "tool", "tool_call_id": "y", "content": "snow"},
    ]
    prompt = engine.template.render(said, [OPENAI_TOOL])
    assert second.usage.input_tokens == len(prompt)
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens


def test_a_response_goes_on_from_an_earlier_one(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    first = create(server, instructions="Forgotten.")
    second = create(server, "again", previous_response_id=first.id)
    said = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "You said: hello"},
        {"role": "user", "content": "again"},
    ]
    assert second.usage.input_tokens == len(engine.template.render(said))
    assert second.previous_response_id == first.id
    client = server.client().responses
    assert client.retrieve(first.id).output_text == "You said: hello"
    client.delete(first.id)
    for forgotten in (first.id, create(server, store=False).id):
        with pytest.raises(openai.NotFoundError):
            client.retrieve(forgotten)
        with pytest.raises(openai.NotFoundError) as caught:
            create(server, previous_response_id=forgotten)
        assert caught.value.code == "previous_response_not_found"


def test_only_the_latest_responses_are_kept(serve):
    server = serve(ScriptedEngine(), max_stored_responses=2)
    first, second, third = [create(server).id for _ in range(3)]
    client = server.client().responses
    assert {client.retrieve(second).id, client.retrieve(third).id} == {second, third}
    with pytest.raises(openai.NotFoundError, match="latest 2"):
        client.retrieve(first)


def test_namespaces_are_flattened_and_named_again(serve):
    """Codex declares the tools of its MCP servers so, and finds a call by both names."""
    tools = [
        {"type": "namespace", "name": "mcp__sky", "tools": [TOOL]},
        {"type": "web_search"},
        {"type": "custom", "name": "patch"},
    ]
    replies = {"hello": [B, *call("mcp__sky__get_weather", "{}"), E]}
    engine = ScriptedEngine(replies)
    server = serve(engine)
    response = create(server, tools=tools)
    [made] = response.output
    assert (made.namespace, made.name) == ("mcp__sky", "get_weather")
    item = made.model_dump(exclude_none=True)
    output = {"type": "function_call_output", "call_id": made.call_id, "output": "x"}
    again = create(server, [{"role": "user", "content": "hello"}, item, output], tools=tools)
    cached = again.usage.input_tokens_details.cached_tokens
    assert cached == response.usage.total_tokens


def test_what_says_nothing_to_this_model_is_skipped_with_one_warning(serve, caplog):
    server = serve(ScriptedEngine())
    items = [{"type": "item_reference", "id": "x"}, {"role": "user", "content": "hello"}]
    for _ in range(2):
        response = create(
            server,
            items,
            tools=[{"type": "web_search"}],
            prompt_cache_key="k",
            extra_body={"frobnicate": 1, "client_metadata": {}},
        )
        assert response.output_text == "You said: hello"
    warnings = [r.getMessage() for r in caplog.records if "not known" in r.getMessage()]
    assert [word in warning for word, warning in zip(W, warnings, strict=True)] == [True] * 3


W = ("frobnicate", "web_search", "item_reference")


def test_a_form_can_be_demanded(serve):
    """Whatever the script says, the answer is JSON that fits, and a call where one must be."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "name": "nothing", "schema": schema, "strict": True}
    server = serve(ScriptedEngine())
    assert create(server, text={"format": form}).output_text.split() in (["{}"], ["{", "}"])
    tool = {**TOOL, "parameters": schema}
    options = {"tool_choice": "required", "parallel_tool_calls": False}
    [made] = create(server, tools=[tool], **options).output
    assert (made.type, made.name) == ("function_call", "get_weather")


@both
def test_an_answer_cut_by_its_length_is_incomplete(serve, stream):
    server = serve(ScriptedEngine())
    if stream:  # the client puts only completed ones together
        last = events_of(server, ENDLESS, max_output_tokens=5)[-1]
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = create(server, ENDLESS, max_output_tokens=5)
    assert (response.status, response.output_text) == ("incomplete", "abcde")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_a_response_under_way_can_be_cancelled(serve):
    server = serve(ScriptedEngine(context=1_000_000))
    events = server.client().responses.create(model="k2", input=ENDLESS, stream=True)
    response_id = next(events).response.id
    assert server.client().responses.cancel(response_id).status == "cancelled"
    assert list(events)[-1].response.status == "cancelled"
    assert server.next_end() == "abort"


def test_tokens_are_counted_as_they_will_be_used(serve):
    server = serve(ScriptedEngine())
    count = server.client().responses.input_tokens.count(
        model="k2", input="hello", instructions="Be.", tools=[TOOL]
    )
    used = create(server, instructions="Be.", tools=[TOOL]).usage
    assert count.input_tokens == used.input_tokens


def test_a_crash_within_a_stream_fails_the_response(serve):
    last = events_of(serve(ScriptedEngine()), CRASH)[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "secret" not in last.response.error.message
    with pytest.raises(openai.InternalServerError):
        create(serve(ScriptedEngine()), CRASH)


def test_the_asynchronous_client_reads_the_same(serve):
    server = serve(ScriptedEngine())

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            async with client.responses.stream(model="k2", input="hello") as events:
                return (await events.get_final_response()).output_text

    assert asyncio.run(ask()) == "You said: hello"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id"),
        ({"input": [{"type": "item_reference"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "name"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"background": True}, "background"),
        ({"include": "x"}, "include"),
        ({"text": {"format": 3}}, "text.format"),
        ({"text": {"format": {"type": "poem"}}}, "poem"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
    ids=str,
)
def test_a_wrong_value_is_a_400_that_names_it(serve, body, message):
    with pytest.raises(openai.BadRequestError) as caught:
        create(serve(ScriptedEngine()), extra_body=body)
    assert message in caught.value.body["message"]


def test_a_prompt_beyond_the_context_is_a_400_that_clients_recognise(serve):
    with pytest.raises(openai.BadRequestError) as caught:
        create(serve(ScriptedEngine(context=100)), "hello world " * 100)
    assert caught.value.code == "context_length_exceeded"


@both
@pytest.mark.parametrize("thinking", [False, True])
def test_logprobs_are_of_the_messages_tokens_only(serve, stream, thinking):
    reply = ["<think>", "Hm.", "</think>", "So be it."] if thinking else ["So be it."]
    engine = ScriptedEngine({"hello": reply}, thinking=thinking)
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = create(serve(engine), stream=stream, **options)
    [part] = response.output[-1].content
    assert "".join(entry.token for entry in part.logprobs) == part.text == "So be it."
    for entry in part.logprobs:
        assert -1e-3 < entry.logprob < 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token
        assert bytes(entry.bytes).decode() == entry.token


def test_a_stream_gives_each_logprob_once(serve):
    server = serve(ScriptedEngine())
    events = events_of(server, include=["message.output_text.logprobs"])
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    tokens = [entry.token for event in deltas for entry in event.logprobs]
    assert "".join(tokens) == "You said: hello" and len(tokens) > len(deltas) / 2
    [done] = [event for event in events if event.type == "response.output_text.done"]
    assert [entry.token for entry in done.logprobs] == tokens


def test_without_the_wish_there_are_no_logprobs_and_a_wrong_number_is_refused(serve):
    server = serve(ScriptedEngine())
    assert create(server).output[0].content[0].logprobs == []
    with pytest.raises(openai.BadRequestError, match="logprobs is 21"):
        create(server, top_logprobs=21)

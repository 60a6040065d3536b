"""Tool calls of /v1/chat/completions as OpenAI's own client sees them, over a real socket."""

import json

import openai
import pytest
from server.scripted_engine import ENDLESS, ScriptedEngine

B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
b, a, e = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name, arguments, counter=0):
    return [b, f"functions.{name}:{counter}", a, arguments, e]


TOOLS = [tool("get_weather", city={"type": "string"}), tool("get-time")]
QUESTION = [{"role": "user", "content": "hello"}]
ONE = ["Let me see.", B, *call("get_weather", '{"city": "北京"}'), E]
TWO = [B, *call("get_weather", '{"city":"Paris"}'), *call("get-time", "", 1), E]


def ask(serve, reply, stream=False, thinking=False, **options):
    """The one choice's (content, reasoning, calls, finish reason), streamed or not the same."""
    server = serve(ScriptedEngine({"hello": reply}, thinking=thinking))
    options = {"tools": TOOLS, **options}
    answer = server.client().chat.completions.create(
        model="k2", messages=QUESTION, stream=stream, **options
    )
    if not stream:
        [choice] = answer.choices
        message = choice.message
        calls = [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or []]
        reasoning = getattr(message, "reasoning_content", "")
        return message.content, reasoning, calls, choice.finish_reason
    content = reasoning = ""
    calls = []
    for chunk in answer:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for part in choice.delta.tool_calls or []:
            if part.id is not None:
                assert (part.index, part.type) == (len(calls), "function")
                calls.append([part.id, part.function.name, ""])
            assert part.index == len(calls) - 1
            calls[-1][2] += part.function.arguments
    return content or None, reasoning, [tuple(c) for c in calls], choice.finish_reason


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_a_call_comes_with_its_content_and_reason(serve, stream):
    content, _, calls, reason = ask(serve, ONE, stream)
    assert content == "Let me see."
    assert calls == [("functions.get_weather:0", "get_weather", '{"city": "北京"}')]
    assert reason == "tool_calls"


@both
def test_parallel_calls_come_in_order_and_content_is_null(serve, stream):
    content, _, calls, reason = ask(serve, TWO, stream)
    assert (content, reason) == (None, "tool_calls")
    assert calls == [
        ("functions.get_weather:0", "get_weather", '{"city":"Paris"}'),
        ("functions.get-time:1", "get-time", "{}"),
    ]


@both
def test_parallel_calls_can_be_turned_off(serve, stream):
    _, _, calls, reason = ask(serve, TWO, stream, parallel_tool_calls=False)
    assert [name for _, name, _ in calls] == ["get_weather"]
    assert reason == "tool_calls"


def test_generating_ends_with_the_only_call_wanted(serve):
    server = serve(ScriptedEngine({"hello": [*TWO, ENDLESS]}, context=1_000_000))
    server.client().chat.completions.create(
        model="k2", messages=QUESTION, tools=TOOLS, parallel_tool_calls=False
    )
    assert server.next_end() == "abort"


@both
def test_a_call_ends_reasoning(serve, stream):
    reply = ["<think>", "Weather.", *call("get_weather", "{}")]
    _, reasoning, calls, reason = ask(serve, reply, stream, thinking=True)
    assert (reasoning, len(calls), reason) == ("Weather.", 1, "tool_calls")


@both
@pytest.mark.parametrize(
    ("reply", "options"),
    [
        (["Hi.", B, *call("rm", '{"path":"/"}'), E], {}),
        (["Hi.", *call("get_weather", "{}")], {"tool_choice": "none"}),
        (["Hi.", *call("get_weather", "{}")], {"tools": None}),
        (["Hi.", *call("get_weather", "{}")], {"tools": [{"type": "web_search"}]}),
    ],
)
def test_a_call_of_what_was_not_offered_is_dropped(serve, caplog, stream, reply, options):
    options = {"extra_body": options} if options.get("tools", True) is None else options
    assert ask(serve, reply, stream, **options)[0::2] == ("Hi.", [])
    assert "dropped" in caplog.text


@both
def test_a_call_cut_by_length_is_none(serve, stream):
    reply = [*call("get_weather", '{"city":"' + "x" * 50)]
    _, _, calls, reason = ask(serve, reply, stream, max_tokens=40)
    assert reason == "length"
    assert bool(calls) == stream  # what has been streamed cannot be taken back


def test_chunks_are_those_of_openai(serve):
    server = serve(ScriptedEngine({"hello": [*call("get_weather", '{"city":1}')]}))
    stream = server.client().chat.completions.create(
        model="k2", messages=QUESTION, tools=TOOLS, stream=True
    )
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in stream]
    assert deltas[0] == {"role": "assistant", "content": ""}
    head = {"name": "get_weather", "arguments": ""}
    assert deltas[1] == {
        "tool_calls": [
            {"index": 0, "id": "functions.get_weather:0", "type": "function", "function": head}
        ]
    }
    assert deltas[-1] == {}
    pieces = [delta["tool_calls"] for delta in deltas[2:-1]]
    assert all(set(part) == {"index", "function"} for [part] in pieces)
    assert "".join(part["function"]["arguments"] for [part] in pieces) == '{"city":1}'


def test_arguments_come_while_the_call_goes_on(serve):
    begun = [b, "functions.get_weather:0", a, '{"city":"', ENDLESS]
    server = serve(ScriptedEngine({"hello": begun}, context=1_000_000))
    stream = server.client().chat.completions.create(
        model="k2", messages=QUESTION, tools=TOOLS, stream=True
    )
    calls = (chunk.choices[0].delta.tool_calls for chunk in stream)
    assert any(part.function.arguments for made in calls for part in made or [])
    assert server.engine.core.ended.empty()
    stream.close()


def test_a_tool_loop_goes_on_until_the_answer(serve):
    """The loop of Moonshot's guide; ids count through the dialogue, foreign ones are renamed."""
    replies = {
        "hello": TWO,
        "## Return of functions.get-time:1\nnoon": call("get_weather", "{}"),
        "## Return of functions.get_weather:2\nrain": ["It rains at noon."],
    }
    results = {"get_weather": "rain", "get-time": "noon"}
    engine = ScriptedEngine(replies)
    client = serve(engine).client()
    messages, ids = list(QUESTION), []
    while True:
        answer = client.chat.completions.create(model="k2", messages=messages, tools=TOOLS)
        [choice] = answer.choices
        messages.append(choice.message.model_dump(exclude_none=True))
        if choice.finish_reason != "tool_calls":
            break
        for made in choice.message.tool_calls:
            ids.append(made.id)
            json.loads(made.function.arguments)
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": made.id,
                    "name": made.function.name,
                    "content": results[made.function.name],
                }
            )
    assert choice.message.content == "It rains at noon."
    assert ids == ["functions.get_weather:0", "functions.get-time:1", "functions.get_weather:2"]
    assert answer.usage.prompt_tokens == len(engine.template.render(messages[:-1], TOOLS))
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


def test_ids_of_other_servers_are_read(serve):
    engine = ScriptedEngine({"## Return of functions.get-time:0\nnoon": TWO})
    made = {"id": "call_1", "type": "function", "function": {"name": "get-time", "arguments": "{}"}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    answer = (
        serve(engine).client().chat.completions.create(model="k2", messages=messages, tools=TOOLS)
    )
    assert [c.id for c in answer.choices[0].message.tool_calls] == [
        "functions.get_weather:1",
        "functions.get-time:2",
    ]


def test_choices_have_calls_of_their_own(serve):
    client = serve(ScriptedEngine({"hello": ONE})).client()
    answer = client.chat.completions.create(model="k2", messages=QUESTION, tools=TOOLS, n=2)
    for choice in answer.choices:
        assert [c.id for c in choice.message.tool_calls] == ["functions.get_weather:0"]


def test_tools_of_another_type_are_skipped_with_one_warning(serve, caplog):
    engine = ScriptedEngine()
    client = serve(engine).client()
    for _ in range(2):
        tools = [{"type": "web_search"}, *TOOLS]
        answer = client.chat.completions.create(model="k2", messages=QUESTION, tools=tools)
    assert answer.usage.prompt_tokens == len(engine.template.render(QUESTION, TOOLS))
    assert len([r for r in caplog.records if "web_search" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tool_choice": "maybe"}, "tool_choice: is 'maybe'; must be 'auto', 'none', 'required'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function.name"),
        ({"tools": ["f"]}, "tools.0"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
    ids=str,
)
def test_what_is_wrong_with_tools_is_a_400_that_names_it(serve, body, message):
    client = serve(ScriptedEngine()).client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="k2", messages=QUESTION, extra_body={"tools": TOOLS, **body}
        )
    assert message in caught.value.body["message"]

"""Answers whose form a request demands, over HTTP with the official clients.

The model wants to write something else, and where it may not, any token is as good as another: what
comes out fits all the same. jsonschema and the clients' own parsers judge.
"""

import json
import sys

import openai
import pydantic
import pytest
from json_schemas import INTEGER, SCHEMAS, STRING, closed, is_valid
from server.scripted_engine import ScriptedEngine

from hybrid_k2.server.constraints import answer_form

pytest.importorskip("llguidance")

HELLO = [{"role": "user", "content": "hello"}]
ARGUMENTS = {"get_weather": closed(city=STRING, days=INTEGER), "stop-all": closed()}


def function(name, schema, **more):
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


TOOLS = [function(name, schema) for name, schema in ARGUMENTS.items()]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", **NAMED}]},
}


def unwilling(thinking=False, **options):
    """An engine whose model wants to say nothing, and takes any token where it may not."""
    reply = ["<think>", "hm", "</think>", "<|im_end|>"] if thinking else ["<|im_end|>"]
    return ScriptedEngine({"hello": reply}, thinking=thinking, **options)


def completed(client, stream, **options):
    """(message, finish reason) of a chat completion, a streamed one put together by the client."""
    options = {"model": "k2", "messages": HELLO, "temperature": 1.0, "max_tokens": 900, **options}
    if not stream:
        [choice] = client.chat.completions.create(**options).choices
        return choice.message, choice.finish_reason
    with client.chat.completions.stream(**options) as events:
        choice = events.get_final_completion().choices[0]
    return choice.message, choice.finish_reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED], ids=["any", "named", "allowed"])
def test_a_forced_call_is_one_of_a_declared_tool_with_valid_arguments(
    serve, choice, thinking, stream
):
    client = serve(unwilling(thinking=thinking)).client()
    for seed in range(2):
        message, reason = completed(client, stream, tools=TOOLS, tool_choice=choice, seed=seed)
        assert reason == "tool_calls" and message.tool_calls and not message.content
        for call in message.tool_calls:
            assert is_valid(call.function.arguments, ARGUMENTS[call.function.name])
            assert choice == "required" or call.function.name == "get_weather"
        assert choice is not NAMED or len(message.tool_calls) == 1
        assert getattr(message, "reasoning_content", None) == ("hm" if thinking else None)


def test_parallel_tool_calls_off_is_one_call(serve):
    client = serve(unwilling()).client()
    counts = set()
    for seed in range(6):
        options = {"tools": TOOLS, "tool_choice": "required", "seed": seed}
        message, reason = completed(client, False, **options, parallel_tool_calls=False)
        assert (len(message.tool_calls), reason) == (1, "tool_calls")
        counts.add(len(completed(client, False, **options)[0].tool_calls))
    assert max(counts) > 1, "or the option makes no difference here"


def test_numbers_of_calls_go_on_where_the_dialogue_was(serve):
    client = serve(unwilling()).client()
    called = {"id": "x", "type": "function", "function": {"name": "stop-all", "arguments": "{}"}}
    history = [
        *HELLO,
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "x", "content": "done"},
    ]
    message, _ = completed(client, False, messages=history, tools=TOOLS, tool_choice=NAMED)
    assert [call.id for call in message.tool_calls] == ["functions.get_weather:1"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", ["every scalar", "recursive"])
def test_a_json_schema_is_kept(serve, name, thinking, stream):
    client = serve(unwilling(thinking=thinking)).client()
    schema = {"name": "s", "schema": SCHEMAS[name], "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    for seed in range(2):
        message, reason = completed(client, stream, response_format=wanted, seed=seed)
        assert reason == "stop" and is_valid(message.content, SCHEMAS[name])
        assert getattr(message, "reasoning_content", None) == ("hm" if thinking else None)


@pytest.mark.slow
def test_every_one_of_200_sampled_answers_fits_its_schema(serve):
    """n choices of one request are held to the schema each by itself."""
    client = serve(unwilling(max_sequences=4)).client()
    fits = []
    for schema in SCHEMAS.values():
        wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        for seed in range(3):
            answer = client.chat.completions.create(
                model="k2",
                messages=HELLO,
                response_format=wanted,
                n=4,
                seed=4 * seed,
                max_tokens=900,
            )
            fits += [is_valid(choice.message.content, schema) for choice in answer.choices]
    assert len(fits) > 200 and all(fits)


class Step(pydantic.BaseModel):
    done: bool
    count: int = pydantic.Field(ge=0, le=9)


def test_the_clients_own_parser_reads_its_models(serve):
    client = serve(unwilling()).client()
    answer = client.chat.completions.parse(model="k2", messages=HELLO, response_format=Step)
    assert isinstance(answer.choices[0].message.parsed, Step)


def test_a_json_objects_schema_is_kept_as_llama_cpps_server_does(serve):
    wanted = {"type": "json_object", "schema": SCHEMAS["nested"]}
    message, _ = completed(serve(unwilling()).client(), False, response_format=wanted)
    assert is_valid(message.content, SCHEMAS["nested"])


def test_a_json_object_is_one_or_was_cut(serve):
    client = serve(unwilling()).client()
    closing = {str(ord(c)): 8 for c in '"}]'}
    for seed in range(4):
        message, reason = completed(
            client, False, response_format={"type": "json_object"}, logit_bias=closing, seed=seed
        )
        assert reason == "length" or isinstance(json.loads(message.content), dict)
    message, reason = completed(
        client, False, response_format={"type": "json_object"}, max_tokens=1
    )
    assert (message.content.strip(), reason) == ("{", "length")


SECTION, CALL = "<|tool_calls_section_begin|>", "<|tool_call_begin|>"
BAD_CALLS = [
    ["Hi. ", SECTION, CALL, "functions.rm:0", "<|tool_call_argument_begin|>", '{"x": 1}'],
    ["Hi. ", SECTION, "no call at all"],
    ["Hi. ", f"{SECTION}{CALL}functions.get_weather:0"],  # spelt with tokens of text
    ["Hi. ", SECTION, CALL, "functions.get_weather:0", "<|tool_call_argument_begin|>", "[]"],
]


@pytest.mark.parametrize("reply", BAD_CALLS, ids=str)
def test_strict_tools_are_called_rightly_whatever_the_model_wants_and_only_if_it_does(serve, reply):
    strict = [function(name, schema, strict=True) for name, schema in ARGUMENTS.items()]
    client = serve(ScriptedEngine({"hello": reply, "no": ["No call."]})).client()
    for stream in (False, True):
        message, reason = completed(client, stream, tools=strict)
        assert (message.content, reason) == ("Hi. ", "tool_calls")
        for call in message.tool_calls:
            assert is_valid(call.function.arguments, ARGUMENTS[call.function.name])
    no = [{"role": "user", "content": "no"}]
    message, reason = completed(client, False, tools=strict, messages=no)
    assert (message.content, reason, message.tool_calls) == ("No call.", "stop", None)


def test_a_call_may_come_instead_of_json_where_there_are_tools(serve):
    reply = [SECTION, CALL, "functions.stop-all:0", "<|tool_call_argument_begin|>", "{}"]
    client = serve(ScriptedEngine({"hello": reply, "json": ['{"city": "x", "days": 1}']})).client()
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": ARGUMENTS["get_weather"]},
    }
    message, reason = completed(client, False, tools=TOOLS, response_format=wanted)
    assert message.tool_calls[0].function.name == "stop-all" and reason == "tool_calls"
    asked = [{"role": "user", "content": "json"}]
    message, reason = completed(
        client, False, tools=TOOLS, response_format=wanted, messages=asked, temperature=0
    )
    assert (message.content, reason) == ('{"city": "x", "days": 1}', "stop")


# Anthropic -------------------------------------------------------------------------------------

ANTHROPIC_TOOLS = [{"name": name, "input_schema": schema} for name, schema in ARGUMENTS.items()]


def message_of(server, stream, **options):
    options = {"model": "k2", "messages": HELLO, "max_tokens": 900, **options}
    client = server.anthropic()
    if not stream:
        return client.messages.create(**options)
    with client.messages.stream(**options) as events:
        return events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "any"},
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "get_weather"},
    ],
    ids=str,
)
def test_anthropics_forced_tools_are_used_with_valid_input(serve, choice, stream):
    server = serve(unwilling())
    message = message_of(server, stream, tools=ANTHROPIC_TOOLS, tool_choice=choice)
    assert message.stop_reason == "tool_use" and message.content
    for block in message.content:
        assert block.type == "tool_use" and is_valid(json.dumps(block.input), ARGUMENTS[block.name])
        assert "name" not in choice or block.name == choice["name"]
    assert choice == {"type": "any"} or len(message.content) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_output_format_is_kept(serve, stream):
    wanted = {"format": {"type": "json_schema", "schema": SCHEMAS["every scalar"]}}
    message = message_of(serve(unwilling()), stream, output_config=wanted)
    assert message.stop_reason == "end_turn"
    assert is_valid(message.content[0].text, SCHEMAS["every scalar"])


# Responses -------------------------------------------------------------------------------------


def test_a_responses_text_format_is_kept(serve):
    client = serve(unwilling()).client()
    wanted = {"type": "json_schema", "name": "s", "schema": SCHEMAS["nested"], "strict": True}
    answer = client.responses.create(model="k2", input="hello", text={"format": wanted})
    assert is_valid(answer.output_text, SCHEMAS["nested"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_responses_forced_call_is_made(serve, choice):
    client = serve(unwilling()).client()
    tools = [
        {"type": "function", "name": name, "parameters": schema, "strict": True}
        for name, schema in ARGUMENTS.items()
    ]
    answer = client.responses.create(model="k2", input="hello", tools=tools, tool_choice=choice)
    assert answer.output
    for item in answer.output:
        assert item.type == "function_call" and is_valid(item.arguments, ARGUMENTS[item.name])


# What costs nothing ----------------------------------------------------------------------------


def test_a_request_that_demands_nothing_has_no_grammar():
    for choice in (None, "auto", "none"):
        assert answer_form(TOOLS, choice, None) is None
        assert answer_form(TOOLS, choice, {"type": "text"}) is None
    assert answer_form([*TOOLS, function("f", {}, strict=False)], "auto", None) is None


def test_without_llguidance_only_what_needs_it_fails(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    client = serve(ScriptedEngine()).client()
    with pytest.raises(openai.InternalServerError, match="pip install llguidance"):
        completed(client, False, response_format={"type": "json_object"})
    assert completed(client, False, tools=TOOLS)[0].content == "You said: hello"

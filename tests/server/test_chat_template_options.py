"""What a chat completion may tell the template: thinking, earlier reasoning, a begun answer."""

import openai
import pytest
from server.scripted_engine import ScriptedEngine

from hybrid_k2.server.chat import HIDDEN_RESULT
from hybrid_k2.text import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def ask(server, messages=HELLO, **body):
    return server.client().chat.completions.create(
        model="k2", messages=messages, max_tokens=100, extra_body=body
    )


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, True),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
    ],
    ids=str,
)
def test_thinking_can_be_turned_off_by_any_name(serve, body, thinks):
    engine = ScriptedEngine(variant="k2.5")
    answer = ask(serve(engine), **body)
    expected = ChatTemplate(engine.tokenizer, "k2.5", thinking=thinks).render(HELLO)
    assert answer.usage.prompt_tokens == len(expected)
    message = answer.choices[0].message
    said = message.reasoning_content if thinks else message.content
    assert said == "You said: hello"


def test_reasoning_comes_back_in_under_both_names_and_can_be_kept(serve):
    engine = ScriptedEngine(thinking=True)
    server = serve(engine)
    for name in ("reasoning", "reasoning_content"):
        dialogue = [*HELLO, {"role": "assistant", "content": "Hi.", name: "He greets."}, *HELLO]
        kept = ChatTemplate(engine.tokenizer, "thinking", preserve_thinking=True)
        said = [*HELLO, {**dialogue[1], "reasoning_content": "He greets."}, *HELLO]
        answer = ask(server, dialogue, chat_template_kwargs={"preserve_thinking": True})
        assert answer.usage.prompt_tokens == len(kept.render(said))
        assert ask(server, dialogue).usage.prompt_tokens < answer.usage.prompt_tokens


@pytest.mark.parametrize("by", ["continue_final_message", "partial"])
@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_that_was_begun_goes_on(serve, by, thinking):
    engine = ScriptedEngine({"hello": ["You", " said"]}, thinking=thinking)
    begun = {"role": "assistant", "content": "You"}
    if by == "partial":
        answer = ask(serve(engine), [*HELLO, {**begun, "partial": True}])
    else:
        more = {"continue_final_message": True, "add_generation_prompt": False}
        answer = ask(serve(engine), [*HELLO, begun], **more)
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == (" said", "stop")
    assert not hasattr(message, "reasoning_content")
    assert answer.usage.prompt_tokens == len(engine.template.render([*HELLO, begun], (), False)) - 1


def test_a_call_cannot_be_continued(serve):
    calls = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    begun = {"role": "assistant", "content": "", "tool_calls": calls, "partial": True}
    with pytest.raises(openai.BadRequestError, match="can be continued"):
        ask(serve(ScriptedEngine()), [*HELLO, begun])


def test_unknown_switches_are_named_once(serve, caplog):
    server = serve(ScriptedEngine())
    for _ in range(2):
        ask(server, chat_template_kwargs={"thinking": True, "tokenize": True})
    warnings = [r.getMessage() for r in caplog.records if "not known" in r.getMessage()]
    assert len(warnings) == 1 and "tokenize" in warnings[0]


def rounds(count):
    """A dialogue of tool calls whose outputs are long."""
    messages = list(HELLO)
    for index in range(count):
        function = {"name": "f", "arguments": "{}"}
        call = {"id": f"c{index}", "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{index}", "content": f"result {index} " * 20},
        ]
    return messages


def test_tool_outputs_give_way_to_a_long_dialogue_where_asked(serve):
    engine = ScriptedEngine(context=700)
    server = serve(engine, hide_tool_outputs=True)
    messages = rounds(4)
    assert len(engine.template.render(messages)) > 700
    hidden = [
        {**message, "content": HIDDEN_RESULT} if message["role"] == "tool" else message
        for message in messages[:-1]
    ]
    answer = ask(server, messages)
    assert answer.usage.prompt_tokens == len(engine.template.render([*hidden, messages[-1]]))
    assert ask(server, rounds(1)).usage.prompt_tokens == len(engine.template.render(rounds(1)))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 700"):
        ask(server, [{"role": "user", "content": "hello " * 800}])


def test_without_that_option_they_do_not(serve):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(serve(ScriptedEngine(context=700)), rounds(4))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["n_ctx"] == 700


THOUGHT = ["<think>", "Hm, let me see.", "</think>", "So."]


@pytest.mark.parametrize(
    "options",
    [
        {"thinking_budget": 3},
        {"thinking_token_budget": 3},
        {"thinking": {"type": "enabled", "budget_tokens": 3}},
    ],
)
def test_a_budget_ends_the_reasoning_and_the_answer_goes_on(serve, options):
    engine = ScriptedEngine({"why": THOUGHT}, thinking=True)
    answer = (
        serve(engine)
        .client()
        .chat.completions.create(
            model="k2",
            messages=[{"role": "user", "content": "why"}],
            max_tokens=8,
            extra_body=options,
        )
    )
    reasoning = answer.choices[0].message.reasoning_content
    assert len(engine.tokenizer.encode(reasoning)) <= 3
    assert "Hm, let me see.".startswith(reasoning)
    assert answer.choices[0].message.content


def test_anthropics_budget_is_one_too_and_a_larger_one_changes_nothing(serve):
    engine = ScriptedEngine({"why": THOUGHT}, thinking=True)
    client = serve(engine).anthropic().messages
    question = {"model": "k2", "messages": [{"role": "user", "content": "why"}], "max_tokens": 40}
    short = client.create(**question, thinking={"type": "enabled", "budget_tokens": 2}).content
    assert len(engine.tokenizer.encode(short[0].thinking)) <= 2 and short[1].type == "text"
    whole = client.create(**question, thinking={"type": "enabled", "budget_tokens": 1024}).content
    assert [whole[0].thinking, whole[1].text] == ["Hm, let me see.", "So."]


def test_a_budget_that_is_no_count_is_refused_and_one_for_no_thinking_is_not(serve):
    hello = {"model": "k2", "messages": [{"role": "user", "content": "hello"}]}
    client = serve(ScriptedEngine(thinking=True)).client().chat.completions
    with pytest.raises(openai.BadRequestError, match="thinking_budget: is -1"):
        client.create(**hello, extra_body={"thinking_budget": -1})
    answer = (
        serve(ScriptedEngine())
        .client()
        .chat.completions.create(**hello, extra_body={"thinking_budget": 0})
    )
    assert answer.choices[0].message.content == "You said: hello"

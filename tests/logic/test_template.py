"""The chat templates against recorded prompts of K2-Instruct and K2-Thinking, and what they refuse.

Where K2's own tokenizer is there the exact ids are compared; everything else runs on the small one.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_factory import gguf_metadata, small_vocabulary

from hybrid_k2.errors import ContextLengthError, TokenizerError
from hybrid_k2.text import ChatTemplate, Tokenizer
from hybrid_k2.text.chat_template import DEFAULT_SYSTEM, TEMPERATURE_KEY, VARIANTS
from hybrid_k2.text.vocabulary import Vocabulary, vocabulary_from_directory

GENERATE = "<|im_assistant|>assistant<|im_middle|>"
SYS = {"role": "system", "content": "You are a helpful assistant."}
SYS_TEXT = "<|im_system|>system<|im_middle|>You are a helpful assistant.<|im_end|>"
DEFAULT_TEXT = f"<|im_system|>system<|im_middle|>{DEFAULT_SYSTEM}<|im_end|>"
HI = {"role": "user", "content": "hi"}
HI_TEXT = "<|im_user|>user<|im_middle|>hi<|im_end|>"
QUESTION = {"role": "user", "content": "What is the weather in Beijing?"}
QUESTION_TEXT = "<|im_user|>user<|im_middle|>What is the weather in Beijing?<|im_end|>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Retrieve current weather information. Call this when the user asks about "
        "the weather.",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
        },
    },
}
DECLARATION = (
    '<|im_system|>tool_declare<|im_middle|>[{"function":{"description":"Retrieve current weather '
    'information. Call this when the user asks about the weather.","name":"get_weather",'
    '"parameters":{"properties":{"city":{"description":"Name of the city","type":"string"}},'
    '"required":["city"],"type":"object"}},"type":"function"}]<|im_end|>'
)


def call(call_id: str, arguments: Any, name: str = "get_weather") -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def answer(content: Any, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def result(call_id: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


FIRST_ROUND = [
    SYS,
    QUESTION,
    answer("", call("functions.get_weather:0", '{"city": "Beijing"}')),
    result("functions.get_weather:0", '{"weather": "Sunny"}'),
]
TWO_ROUNDS = [
    *FIRST_ROUND,
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "And Paris and 北京?"},
    answer(
        "Checking.",
        call("functions.get_weather:1", '{"city": "Paris"}'),
        call("functions.get_weather:2", {"city": "北京", "n": 1}),
    ),
    result("functions.get_weather:1", "rain", name="get_weather"),
    result("functions.get_weather:2", [{"type": "text", "text": "snow"}], name="get_weather"),
]
FIRST_CALL_TEXT = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Beijing"}<|tool_call_end|><|tool_calls_section_end|>'
)
FIRST_RESULT_TEXT = (
    "<|im_end|><|im_system|>tool<|im_middle|>## Return of functions.get_weather:0\n"
    '{"weather": "Sunny"}<|im_end|>'
)
TWO_ROUNDS_TEXT = (
    f"{SYS_TEXT}{QUESTION_TEXT}{GENERATE}{FIRST_CALL_TEXT}{FIRST_RESULT_TEXT}"
    f"{GENERATE}It is sunny.<|im_end|>"
    "<|im_user|>user<|im_middle|>And Paris and 北京?<|im_end|>"
    f"{GENERATE}Checking.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:1"
    '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>'
    'functions.get_weather:2<|tool_call_argument_begin|>{"city": "北京", "n": 1}<|tool_call_end|>'
    "<|tool_calls_section_end|><|im_end|>"
    "<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:1\nrain<|im_end|>"
    "<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:2\nsnow<|im_end|>"
    f"{GENERATE}"
)
GREETED = {"role": "assistant", "content": "Hello!", "reasoning_content": "greet"}
BYE = {"role": "user", "content": "bye"}
IN_LOOP = [
    SYS,
    QUESTION,
    answer(
        "",
        call("functions.get_weather:0", '{"city": "Beijing"}'),
        reasoning_content="The user wants weather.",
    ),
    FIRST_ROUND[3],
]
DEFAULT_IDS = (
    "163594 14062 163601 3900 554 24980 72 11 519 22572 26626 5232 673 30218 10065 22572 13 163586"
)
SYS_IDS = "163594 14062 163601 3900 554 261 13205 26626 13 163586"
HI_IDS = "163587 2482 163601 9663 163586"
GENERATE_IDS = "163588 69702 163601"

# name: (variant, messages, tools, add_generation_prompt, text, ids or how many of them)
RECORDED: dict[str, tuple[str, list[Any], list[Any], bool, str, str | int]] = {
    "E1 default system": (
        "instruct",
        [HI],
        [],
        True,
        f"{DEFAULT_TEXT}\n{HI_TEXT}{GENERATE}",
        f"{DEFAULT_IDS} 198 {HI_IDS} {GENERATE_IDS}",
    ),
    "E2 own system": (
        "instruct",
        [SYS, HI],
        [],
        True,
        f"{SYS_TEXT}{HI_TEXT}{GENERATE}",
        f"{SYS_IDS} {HI_IDS} {GENERATE_IDS}",
    ),
    "E3 tools": (
        "instruct",
        [SYS, QUESTION],
        [WEATHER],
        True,
        f"{DECLARATION}{SYS_TEXT}{QUESTION_TEXT}{GENERATE}",
        89,
    ),
    "E4 two rounds of calls": (
        "instruct",
        TWO_ROUNDS,
        [WEATHER],
        True,
        f"{DECLARATION}{TWO_ROUNDS_TEXT}",
        228,
    ),
    "E5 a name": (
        "instruct",
        [SYS, {**HI, "name": "Bob"}],
        [],
        True,
        f"{SYS_TEXT}<|im_user|>Bob<|im_middle|>hi<|im_end|>{GENERATE}",
        18,
    ),
    "E6 thinking, default system": (
        "thinking",
        [HI],
        [],
        True,
        f"{DEFAULT_TEXT}{HI_TEXT}{GENERATE}",
        f"{DEFAULT_IDS} {HI_IDS} {GENERATE_IDS}",
    ),
    "E7 thinking, a new turn drops reasoning": (
        "thinking",
        [SYS, HI, GREETED, BYE],
        [],
        True,
        f"{SYS_TEXT}{HI_TEXT}{GENERATE}<think></think>Hello!<|im_end|>"
        f"<|im_user|>user<|im_middle|>bye<|im_end|>{GENERATE}",
        f"{SYS_IDS} {HI_IDS} {GENERATE_IDS} 163606 163607 19180 0 163586 163587 2482 163601 43006 "
        f"163586 {GENERATE_IDS}",
    ),
    "E8 thinking, a tool loop keeps reasoning": (
        "thinking",
        IN_LOOP,
        [WEATHER],
        True,
        f"{DECLARATION}{SYS_TEXT}{QUESTION_TEXT}{GENERATE}<think>The user wants weather.</think>"
        f"{FIRST_CALL_TEXT}{FIRST_RESULT_TEXT}{GENERATE}",
        139,
    ),
    "E10 thinking, without a generation prompt": (
        "thinking",
        [SYS, HI, GREETED],
        [],
        False,
        f"{SYS_TEXT}{HI_TEXT}{GENERATE}<think></think>Hello!<|im_end|>",
        23,
    ),
    "K2.5 begins the reasoning": (
        "k2.5",
        [{"role": "system", "content": DEFAULT_SYSTEM}, {**HI, "content": "hi, who are you?"}],
        [],
        True,
        f"{DEFAULT_TEXT}<|im_user|>user<|im_middle|>hi, who are you?<|im_end|>{GENERATE}<think>",
        32,
    ),
}


@pytest.fixture(scope="module")
def k2_tokenizers(k2_data: Path) -> dict[str, Tokenizer]:
    """K2-Instruct's tokenizer and K2-Thinking's, which has two more names; by variant."""
    vocabulary = vocabulary_from_directory(k2_data)
    names = {"<think>": 163606, "</think>": 163607}
    unused = {i: name for i, name in vocabulary.unused.items() if i not in names.values()}
    thinking = Tokenizer(Vocabulary(vocabulary.ranks, {**vocabulary.control, **names}, unused))
    return {"instruct": Tokenizer(vocabulary), "thinking": thinking, "k2.5": thinking}


SMALL = Tokenizer(small_vocabulary(thinking=True, media=True))


def template(variant: str = "instruct", **options: bool) -> ChatTemplate:
    return ChatTemplate(SMALL, variant, **options)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_prompts_have_the_recorded_text(name: str) -> None:
    variant, messages, tools, generate, text, _ = RECORDED[name]
    assert template(variant).render_text(messages, tools, generate) == text
    assert SMALL.decode(template(variant).render(messages, tools, generate)) == text


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_prompts_have_the_recorded_ids(
    k2_tokenizers: dict[str, Tokenizer], name: str
) -> None:
    variant, messages, tools, generate, text, ids = RECORDED[name]
    rendered = ChatTemplate(k2_tokenizers[variant], variant).render(messages, tools, generate)
    assert k2_tokenizers[variant].decode(rendered) == text
    if isinstance(ids, int):
        assert len(rendered) == ids
    else:
        assert rendered == [int(number) for number in ids.split()]


def test_the_tool_declaration_has_the_recorded_ids(k2_tokenizers: dict[str, Tokenizer]) -> None:
    ids = ChatTemplate(k2_tokenizers["instruct"], "instruct").render([SYS], [WEATHER])
    declaration = ids[: ids.index(163586) + 1]
    assert len(declaration) == 65
    assert declaration[:8] == [163594, 20960, 35556, 677, 163601, 81103, 3879, 22849]
    assert declaration[-3:] == [16934, 60, 163586]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=50)
@given(text=st.lists(st.sampled_from([*SMALL._control_ids, "a", " ", "\n"])).map("".join))
def test_nothing_a_client_sends_becomes_a_control_token(variant: str, text: str) -> None:
    """The markers of a prompt are those of the same prompt with harmless texts in their place."""

    def markers(hostile: str) -> list[str]:
        parameters = {"type": hostile}
        tools = [{"type": "function", "function": {"name": hostile, "parameters": parameters}}]
        messages = [
            {"role": "system", "content": hostile},
            {"role": "user", "content": hostile, "name": hostile},
            answer(hostile, call(hostile, hostile, hostile or "f"), reasoning_content=hostile),
            result(hostile or "x", [{"type": "text", "text": hostile}], name=hostile),
            answer(hostile, call("1", {hostile: hostile})),
        ]
        ids = template(variant).render(messages, tools)
        return [name for name in map(SMALL.control_text, ids) if name is not None]

    assert markers(text) == markers("a")


def test_neighbouring_texts_are_encoded_as_one() -> None:
    ids = template().render([SYS, result("x", "\nhello")], add_generation_prompt=False)
    middle = SMALL.special_id("<|im_middle|>")
    body = ids[len(ids) - 1 - ids[::-1].index(middle) + 1 : -1]
    assert body == SMALL.encode("## Return of x\n\nhello")
    assert body != SMALL.encode("## Return of x\n") + SMALL.encode("\nhello")


# Parts of messages -----------------------------------------------------------------------------


def rendered(*messages: Any, variant: str = "instruct", **options: bool) -> str:
    """What follows the system message."""
    text = template(variant, **options).render_text([SYS, *messages], add_generation_prompt=False)
    return text.removeprefix(SYS_TEXT)


def test_text_parts_are_joined_without_a_separator() -> None:
    parts = [{"type": "text", "text": "h"}, "i"]
    assert rendered({"role": "user", "content": parts}) == HI_TEXT
    assert "<|im_middle|><|im_end|>" in rendered({"role": "user", "content": []})


@pytest.mark.parametrize("content", [None, "", []])
def test_an_assistant_may_have_no_content(content: Any) -> None:
    assert rendered({"role": "assistant", "content": content}) == f"{GENERATE}<|im_end|>"


def test_a_developer_is_a_system_and_replaces_the_default() -> None:
    text = template().render_text([{"role": "developer", "content": "be brief"}, HI])
    assert text.startswith("<|im_system|>system<|im_middle|>be brief<|im_end|><|im_user|>")


def test_k25_has_no_default_system() -> None:
    assert template("k2.5").render_text([HI]) == f"{HI_TEXT}{GENERATE}<think>"
    assert template("k2.5").default_system is None


def test_k25_without_thinking_closes_the_reasoning_in_the_prompt() -> None:
    instant = template("k2.5", thinking=False)
    assert instant.render_text([HI]).endswith(f"{GENERATE}<think></think>")


def test_calls_are_renumbered_through_the_dialogue_and_results_follow() -> None:
    text = rendered(
        HI,
        answer(None, call("toolu_a", "{}", "f"), call("toolu_b", "{}", "g.h-i")),
        result("toolu_b", "B"),
        result("toolu_a", "A"),
        answer("", call("toolu_a", "{}", "f")),
        result("toolu_a", "again"),
        result("lost", "whose call was cut from the history"),
    )
    for expected in (
        "begin|>functions.f:0<|",
        "begin|>functions.g.h-i:1<|",
        "## Return of functions.g.h-i:1\nB<",
        "## Return of functions.f:0\nA<",
        "begin|>functions.f:2<|",
        "## Return of functions.f:2\nagain<",
        "## Return of lost\nwhose",
    ):
        assert expected in text
    assert "toolu" not in text


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert "argument_begin|>{}<|" in rendered(HI, answer("", call("x", None)))


@pytest.mark.parametrize("variant", ["thinking", "k2.5"])
def test_reasoning_stays_behind_the_last_answer_that_called_no_tool(variant: str) -> None:
    def thought(index: int) -> dict[str, Any]:
        return answer("", call(f"c{index}", "{}", "f"), reasoning_content=f"r{index}")

    history = [HI, thought(1), result("c1", "x"), GREETED, BYE, thought(2), result("c2", "y")]
    history += [thought(3), result("c3", "z")]
    text = rendered(*history, variant=variant)
    assert text.count("<think></think>") == 2
    assert "<think>r2</think>" in text
    assert "<think>r3</think>" in text
    kept = rendered(*history, variant=variant, preserve_thinking=True)
    assert "<think>r1</think>" in kept
    assert "<think>greet</think>Hello!" in kept
    assert "think" not in rendered(*history)


def test_reasoning_that_is_null_is_empty() -> None:
    history = [HI, answer("", call("c", "{}"), reasoning_content=None)]
    assert "<think></think><|tool" in rendered(*history, variant="thinking")


# Choosing a variant ----------------------------------------------------------------------------

THINKING_TEMPLATE = "{{ '<think>' + reasoning + '</think>' }}"


@pytest.mark.parametrize(
    ("text", "thinking", "media", "expected"),
    [
        ("{{ messages }}", True, True, "instruct"),
        ("{{ messages }}", False, False, "instruct"),
        (THINKING_TEMPLATE, True, False, "thinking"),
        (THINKING_TEMPLATE + "{% if thinking is defined %}", True, False, "k2.5"),
        (THINKING_TEMPLATE + "<|media_begin|>", True, True, "k2.5"),
        ("", False, False, "instruct"),
        ("", True, False, "thinking"),
        ("", True, True, "k2.5"),
    ],
)
def test_the_variant_follows_from_template_and_vocabulary(
    text: str, thinking: bool, media: bool, expected: str
) -> None:
    vocabulary = small_vocabulary(thinking=thinking, media=media, template=text)
    metadata = gguf_metadata(vocabulary)
    from_file = Tokenizer.from_gguf(metadata)
    without_template = Tokenizer(small_vocabulary(thinking=thinking, media=media))
    assert ChatTemplate.for_model(from_file).variant == expected
    assert ChatTemplate.for_model(without_template, metadata).variant == expected


def test_a_given_variant_wins_and_an_unknown_one_is_an_error() -> None:
    assert ChatTemplate.for_model(SMALL, variant="instruct").variant == "instruct"
    with pytest.raises(
        TokenizerError, match=r"'k3' is unknown; there are instruct, thinking, k2.5"
    ):
        ChatTemplate.for_model(SMALL, variant="k3")


def test_a_vocabulary_without_the_variants_markers_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no control token <think>, which the thinking"):
        ChatTemplate(Tokenizer(small_vocabulary()), "thinking")


@pytest.mark.parametrize(
    ("variant", "options", "temperature", "thinks"),
    [
        ("instruct", {}, 0.6, False),
        ("thinking", {}, 1.0, True),
        ("thinking", {"thinking": False}, 1.0, True),
        ("k2.5", {}, 1.0, True),
        ("k2.5", {"thinking": False}, 0.6, False),
    ],
)
def test_the_recommended_temperature_follows_the_variant(
    variant: str, options: dict[str, bool], temperature: float, thinks: bool
) -> None:
    chosen = template(variant, **options)
    assert (chosen.default_temperature, chosen.thinking) == (temperature, thinks)


@pytest.mark.parametrize(
    ("stored", "temperature"),
    [(0.30000001192092896, 0.3), (1, 1.0), (-1.0, 0.6), (math.nan, 0.6), ("hot", 0.6), (None, 0.6)],
)
def test_a_file_may_recommend_a_temperature_of_its_own(stored: Any, temperature: float) -> None:
    metadata = {} if stored is None else {TEMPERATURE_KEY: stored}
    chosen = ChatTemplate.for_model(SMALL, metadata, variant="instruct")
    assert chosen.default_temperature == temperature
    of_thinking = 1.0 if temperature == 0.6 else temperature
    assert chosen.with_variant("thinking").default_temperature == of_thinking


@pytest.mark.parametrize(
    ("variant", "asked", "becomes", "thinks"),
    [
        ("instruct", None, "instruct", False),
        ("instruct", False, "instruct", False),
        ("instruct", True, "thinking", True),
        ("thinking", False, "thinking", True),
        ("k2.5", None, "k2.5", True),
        ("k2.5", False, "k2.5", False),
    ],
)
def test_a_vocabulary_that_can_think_does_so_where_it_is_asked_to(
    variant: str, asked: bool | None, becomes: str, thinks: bool
) -> None:
    switched = ChatTemplate(SMALL, variant, temperature=0.3).with_thinking(asked)
    assert (switched.variant, switched.thinking) == (becomes, thinks)
    assert switched.default_temperature == 0.3
    if variant == "instruct":  # as Kimi-K2-Instruct's own vocabulary, which has no such markers
        without = ChatTemplate(Tokenizer(small_vocabulary()), variant)
        assert without.with_thinking(asked).variant == "instruct"


# What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("hi", r"messages\[1\] must be an object, is a str"),
        ({}, r"messages\[1\].role is None"),
        ({"role": "robot", "content": ""}, r"messages\[1\].role is 'robot'; must be one of user,"),
        ({"role": ["user"], "content": ""}, r"messages\[1\].role is \['user'\]"),
        ({"role": "user"}, r"messages\[1\].content is missing"),
        ({"role": "user", "content": 7}, r"messages\[1\].content must be a string or a list"),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            r"content\[0\] has type 'image_url'",
        ),
        ({"role": "user", "content": ["a", 7]}, r"messages\[1\].content\[1\] has type 'int'"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\].text must be a string"),
        ({"role": "user", "content": "a", "name": 7}, r"messages\[1\].name must be a string"),
        ({"role": "tool", "content": "a"}, r"messages\[1\].tool_call_id is missing"),
        (answer("", {"id": "x"}), r"messages\[1\].tool_calls\[0\].function must be an object"),
        (answer("", "x"), r"messages\[1\].tool_calls\[0\].function must be an object"),
        (answer("", call("x", "{}", "")), r"tool_calls\[0\].function.name is missing"),
        (answer("", call("x", [1])), r"tool_calls\[0\].function.arguments must be a JSON string"),
        (answer("", call("x", {"a": {1}})), r"function.arguments cannot be written as JSON"),
        ({"role": "assistant", "tool_calls": "x"}, r"messages\[1\].tool_calls must be a list"),
        ({**GREETED, "reasoning_content": []}, r"messages\[1\].reasoning_content must be a string"),
    ],
)
def test_a_bad_message_is_named_by_index_and_key(message: Any, expected: str) -> None:
    with pytest.raises(TokenizerError, match=expected):
        template("thinking").render([SYS, message])


def test_no_messages_and_bad_tools_are_errors() -> None:
    with pytest.raises(TokenizerError, match="messages is empty"):
        template().render([])
    for tools in ({"name": "f"}, ["f"], [{"a": {1}}]):
        with pytest.raises(TokenizerError, match="tools"):
            template().render([HI], tools)  # type: ignore[arg-type]


def test_a_prompt_longer_than_allowed_is_refused() -> None:
    num_tokens = len(template().render([SYS, HI]))
    assert len(template().render([SYS, HI], max_tokens=num_tokens)) == num_tokens
    with pytest.raises(ContextLengthError, match=f"length is {num_tokens - 1} tokens"):
        template().render([SYS, HI], max_tokens=num_tokens - 1)
    with pytest.raises(ContextLengthError, match="length is 4095 tokens"):
        template().render([{"role": "user", "content": "a" * 200_000_000}], max_tokens=4095)

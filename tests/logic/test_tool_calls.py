"""The stream of tool calls: what comes out when, names, ids, real tokens, and whatever ids come.

The streams that other servers know are in test_tool_call_cases.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_call_streams import (
    ALIAS,
    SHORT,
    THINK,
    TOKENIZER,
    TOOLS,
    WAYS,
    as_bytes,
    as_text,
    as_tokens,
    calls,
    deltas_of,
    read,
    spelt,
    tool,
)

from hybrid_k2.text import Delta, TextStream, Tokenizer
from hybrid_k2.text.call_ids import CallIds
from hybrid_k2.text.markers import TOOL_MARKERS
from hybrid_k2.text.tool_calls import (
    MAX_ID_CHARS,
    CallArguments,
    CallDropped,
    CallEnd,
    CallStart,
    DeclaredTools,
    collect_calls,
)
from hybrid_k2.text.vocabulary import vocabulary_from_directory


def test_markers_within_a_string_of_arguments_are_the_models_own_words() -> None:
    """A quote in front tells. Control tokens are no words and end the call all the same."""
    told = json.dumps({"x": f'"{SHORT["e"]}{SHORT["E"]}\\', "y": SHORT["b"]})
    for opening in (as_tokens, as_text):
        ids = [*opening(spelt("⟨B⟩⟨b⟩f:0⟨a⟩")), *as_bytes(told), *opening(spelt("⟨e⟩⟨E⟩c"))]
        assert read(ids) == ("", "c", calls(("f", told)), "tool_calls")
    ids = [*as_tokens(spelt("⟨b⟩f:0⟨a⟩")), *as_bytes('{"x":"\\'), *as_tokens(spelt("⟨e⟩c"))]
    ids += as_text(spelt("⟨b⟩g:1⟨a⟩{}⟨e⟩"))  # the string has ended with its call
    assert read(ids)[1:3] == ("c", calls(("f", '{"x":"\\'), ("g", "{}")))


def test_what_follows_a_call_marker_and_is_too_long_for_an_id_is_text() -> None:
    prose = " opens a call in K2's answers." * 20
    for way in (as_tokens, as_text, as_bytes):
        assert read(way(spelt(f"⟨b⟩{prose}⟨b⟩f:0⟨a⟩{{}}⟨e⟩")))[1:3] == (prose, calls(("f", "{}")))
    assert read(as_bytes(spelt("⟨b⟩" + "x" * MAX_ID_CHARS)))[1] == ""
    assert read(as_bytes(spelt("⟨b⟩" + "x" * (MAX_ID_CHARS + 1))))[1] == "x" * (MAX_ID_CHARS + 1)


# Streaming -------------------------------------------------------------------------------------


def test_arguments_come_out_as_they_come_in() -> None:
    stream = TextStream(TOKENIZER, tools=TOOLS)
    begin = [d for i in as_tokens(spelt("hi⟨B⟩⟨b⟩f:0⟨a⟩")) for d in stream.push(i)]
    assert begin == [Delta("content", "h"), Delta("content", "i")]
    pieces = [stream.push(i) for i in as_bytes('{"x" : "é<|to"}')]
    assert pieces[0] == [CallStart(0, "functions.f:0", "f"), CallArguments(0, "{")]
    assert pieces[1:] == [
        *([CallArguments(0, c)] for c in '"x"'),
        [],
        [CallArguments(0, " :")],
        [],
        [CallArguments(0, ' "')],
        [],
        [CallArguments(0, "é")],
        *([CallArguments(0, c)] for c in '<|to"}'),
    ]
    assert stream.push(TOKENIZER.special_id(SHORT["e"])) == [CallEnd(0)]
    assert stream.finish() == []


def test_a_call_whose_name_follows_from_its_keys_comes_out_at_its_end() -> None:
    *deltas, _ = deltas_of(as_tokens(spelt('⟨b⟩:7⟨a⟩{"x":1}⟨e⟩')))
    assert deltas == [
        CallStart(0, "functions.f:0", "f"),
        CallArguments(0, '{"x":1}'),
        CallEnd(0),
    ]


def test_a_call_that_was_cut_is_marked_and_not_collected() -> None:
    *deltas, _ = deltas_of(as_tokens(spelt('⟨b⟩f:0⟨a⟩{}⟨e⟩⟨b⟩g:1⟨a⟩{"y"')))
    assert CallStart(1, "functions.g:1", "g") in deltas
    assert deltas[-1] == CallEnd(1, is_complete=False)
    assert [call.name for call in collect_calls(deltas)] == ["f"]


@pytest.mark.parametrize(
    ("text", "engines", "expected"),
    [
        ("⟨b⟩f:0⟨a⟩{}", "length", "tool_calls"),
        ('⟨b⟩f:0⟨a⟩{"x":', "length", "length"),
        ('⟨b⟩f:0⟨a⟩{"x":', "stop", "stop"),
        ('⟨b⟩f:0⟨a⟩{}⟨e⟩⟨b⟩g:1⟨a⟩{"y":', "length", "length"),
        ("⟨b⟩nothing:0⟨a⟩{}⟨e⟩", "stop", "stop"),
        ("hello", "length", "length"),
    ],
)
def test_an_answer_ends_for_its_calls_if_there_is_one_and_none_was_cut_by_length(
    text: str, engines: str, expected: str
) -> None:
    stream = TextStream(TOKENIZER, tools=TOOLS)
    for token_id in as_tokens(spelt(text)):
        stream.push(token_id)
    stream.finish()
    assert stream.finish_reason(engines) == expected


def test_stop_strings_end_the_content_and_not_the_arguments() -> None:
    ids = as_tokens(spelt('a x⟨b⟩f:0⟨a⟩{"x":1}⟨e⟩b x c⟨b⟩f:0⟨a⟩{}⟨e⟩'))
    assert read(ids, stop=['"x"', "x c"])[1:3] == ("a xb ", calls(("f", '{"x":1}')))
    stream = TextStream(TOKENIZER, ['"x"', "x c"], tools=TOOLS)
    finished = [bool(stream.push(token_id)) and stream.is_finished for token_id in ids]
    assert stream.is_finished and not finished[0]


def test_one_call_is_all_that_comes_where_parallel_calls_are_off() -> None:
    text = spelt("c⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨b⟩g:1⟨a⟩{}⟨e⟩⟨E⟩d")
    for way in WAYS:
        answer = read(way(text), parallel_tool_calls=False)
        assert answer == ("", "c", calls(("f", "{}")), "tool_calls")
    stream = TextStream(TOKENIZER, tools=TOOLS, parallel_tool_calls=False)
    end = as_tokens(text).index(TOKENIZER.special_id(SHORT["e"]))
    for token_id in as_tokens(text)[:end]:
        stream.push(token_id)
    assert not stream.is_finished
    stream.push(TOKENIZER.special_id(SHORT["e"]))
    assert stream.is_finished


# Names and ids ---------------------------------------------------------------------------------


def test_a_dropped_call_says_what_it_was() -> None:
    text = "⟨b⟩ rm:0⟨a⟩{}⟨e⟩⟨b⟩f⟨e⟩⟨b⟩3⟨a⟩{}⟨e⟩⟨b⟩g:0⟨a⟩"
    *deltas, _ = deltas_of(as_tokens(spelt(text)))
    assert deltas == [
        CallDropped("rm:0", "no declared tool has this name"),
        CallDropped("f", "it has no arguments"),
        CallDropped("3", "its id names no tool and its arguments fit none"),
        CallDropped("g:0", "it was cut"),
    ]


def test_where_no_tool_is_declared_every_call_is_dropped() -> None:
    text = spelt('Hi.⟨B⟩⟨b⟩f:0⟨a⟩{"x":1}⟨e⟩⟨b⟩2⟨a⟩{}⟨e⟩⟨E⟩')
    assert read(as_tokens(text), tools=[]) == ("", "Hi.", [], "stop")


@pytest.mark.parametrize("tools", [None, []])
def test_a_model_that_has_nothing_to_call_may_write_about_calls(tools: list[Any] | None) -> None:
    text = spelt('K2 writes ⟨B⟩⟨b⟩id⟨a⟩{"x":1}⟨e⟩⟨E⟩.')
    assert read(as_text(text), tools=tools) == ("", text, [], "stop")


def test_one_tool_is_meant_by_every_id_without_a_name() -> None:
    for call_id in ("2", "", "functions", "functions.:2", ":2", "call_x-1", "toolu_x"):
        ids = as_tokens(spelt(f'⟨b⟩{call_id}⟨a⟩{{"city":"x"}}⟨e⟩'))
        [found] = read(ids, tools=[tool("get_weather")])[2]
        assert found[0] == "get_weather"


def test_the_whole_name_comes_before_its_parts() -> None:
    tools = DeclaredTools([tool(name) for name in ("a", "x.a", "functions.a", "b", "a_1", "1")])
    written = ["a:0", "functions.a:0", "x.a:3", "functions.x.a:3", "y.b:2", "a_1:0", "b-7", "1"]
    assert [tools.name_in(text) for text in written] == [
        *("a", "functions.a", "x.a", "x.a", "b", "a_1", "b", "1")
    ]


def test_declarations_that_are_malformed_are_passed_over() -> None:
    tools: list[Any] = [{}, {"function": 3}, {"function": {"name": 3}}]
    tools += [{"function": {"name": "f", "parameters": p}} for p in (None, [], {"properties": 3})]
    assert DeclaredTools(tools).name_in("functions.f:0") == "f"


def assistant(*called: tuple[str, str]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": i, "function": {"name": n, "arguments": "{}"}} for i, n in called],
    }


def test_ids_of_new_calls_continue_the_dialogues_count() -> None:
    history = [
        {"role": "user", "content": "hi"},
        assistant(("call_1", "f"), ("call_2", "g")),
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": None},
        assistant(("functions.f:2", "f")),
    ]
    ids = as_tokens(spelt("⟨b⟩functions.f:9⟨a⟩{}⟨e⟩⟨b⟩g:0⟨a⟩{}⟨e⟩"))
    found = read(ids, history=history)[2]
    assert [call_id for *_, call_id in found] == ["functions.f:3", "functions.g:4"]


def test_a_new_id_is_none_that_the_client_still_holds() -> None:
    """Its history begins late: the two calls left are not the dialogue's first."""
    call_ids = CallIds.after([assistant(("functions.f:1", "f"), ("functions.f:2", "f"))])
    assert [call_ids.new("f"), call_ids.new("f")] == ["functions.f:3", "functions.f:4"]
    assert call_ids.renamed("functions.f:1") == "functions.f:0"
    assert call_ids.renamed("functions.f:2") == "functions.f:1"


# Real tokens -----------------------------------------------------------------------------------

NANJING_IDS = (
    "12365 8597 6523 378 24888 1295 19183 13021 3372 488 10525 65070 2648 163595 163597 41937 1150 "
    "20254 21055 2800 25 16 163598 8264 5791 1289 414 3372 16934 163599 163597 41937 1150 20254 "
    "21055 2800 25 17 163598 8264 5791 1289 414 10525 16934 163599 163596"
)
WEATHER = [tool("get_current_weather", "location")]


@pytest.fixture(scope="module")
def k2_tokenizer(k2_data: Path) -> Tokenizer:
    return Tokenizer(vocabulary_from_directory(k2_data))


def test_recorded_tokens_of_two_calls_are_read(k2_tokenizer: Tokenizer) -> None:
    stream = TextStream(k2_tokenizer, tools=WEATHER, history=[assistant(("0", "f"))])
    deltas = [d for token_id in NANJING_IDS.split() for d in stream.push(int(token_id))]
    deltas += stream.finish()
    content = "".join(d.text for d in deltas if isinstance(d, Delta))
    assert content == k2_tokenizer.decode(map(int, NANJING_IDS.split()[:13]))
    found = collect_calls(deltas)
    assert [(call.id, json.loads(call.arguments)) for call in found] == [
        ("functions.get_current_weather:1", {"location": "北京"}),
        ("functions.get_current_weather:2", {"location": "南京"}),
    ]


def test_a_hyphenated_name_is_read_from_real_tokens(k2_tokenizer: Tokenizer) -> None:
    ids = [163595, 163597, 41937, 1150, 67651, 12, 50171, 25, 15, 163598, 163599, 163596]
    stream = TextStream(k2_tokenizer, tools=[tool("get-current-weather")])
    [call] = collect_calls([d for token_id in ids for d in stream.push(token_id)])
    assert (call.name, call.arguments) == ("get-current-weather", "{}")


# Whatever comes --------------------------------------------------------------------------------

VOCABULARY = st.integers(0, TOKENIZER.vocab_size - 1)
MARKER_IDS = st.sampled_from([TOKENIZER.special_id(m) for m in (*TOOL_MARKERS, *THINK)])
FRAGMENTS = st.sampled_from(
    [*SHORT.values(), *ALIAS.values(), "functions.f:0", "2", "{}", '{"x":', '"', "\\", "}", " \n"]
)
hostile_ids = st.lists(
    st.one_of(
        VOCABULARY.map(lambda i: [i]),
        MARKER_IDS.map(lambda i: [i]),
        FRAGMENTS.map(TOKENIZER.encode),
        FRAGMENTS.map(as_bytes),
    ),
    max_size=60,
).map(lambda parts: [token_id for part in parts for token_id in part])


@settings(max_examples=400)
@given(hostile_ids, st.booleans(), st.sampled_from([TOOLS, TOOLS[:1], []]))
def test_whatever_comes_nothing_raises_and_no_delta_holds_a_marker(
    ids: list[int], parallel: bool, tools: list[Any]
) -> None:
    *deltas, reason = deltas_of(ids, tools=tools, parallel_tool_calls=parallel)
    for delta in deltas:
        if isinstance(delta, Delta) and tools:
            assert not any(marker in delta.text for marker in (*TOOL_MARKERS, *ALIAS.values()))
    found = collect_calls(deltas)
    assert (reason == "tool_calls") == bool(found)
    declared = DeclaredTools(tools)
    assert all(declared.name_in(call.name) == call.name for call in found)
    assert len({call.id for call in found}) == len(found)
    assert parallel or len(found) <= 1


@settings(max_examples=200)
@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=20).map("".join), st.data())
def test_token_borders_make_no_difference(text: str, data: st.DataObject) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids: list[int] = []
    rest = text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        ids += TOKENIZER.encode(rest[:size])
        rest = rest[size:]
    assert read(ids) == read(as_bytes(text))


@settings(max_examples=200)
@given(st.lists(VOCABULARY, max_size=40))
def test_an_answer_without_tool_markers_is_the_same_with_tools_and_without(ids: list[int]) -> None:
    tool_ids = {TOKENIZER.special_id(name) for name in TOOL_MARKERS}
    ids = [token_id for token_id in ids if token_id not in tool_ids]
    assert read(ids, tools=TOOLS) == read(ids, tools=None)


arguments = st.dictionaries(
    st.text('xyz<|>\\"', max_size=3),
    st.recursive(st.text(max_size=5) | st.integers(), lambda v: st.lists(v, max_size=3)),
    max_size=3,
)
words = st.text("ab <>|\n", max_size=6).map(lambda text: text.strip() and f"w{text}w")


@settings(max_examples=200)
@given(
    words,
    st.lists(st.tuples(st.sampled_from(["f", "my-tool", "ns.tool"]), arguments), min_size=1),
    words,
    st.sampled_from([as_tokens, as_text, as_bytes]),
)
def test_what_is_well_formed_is_read_whole(
    content: str, named: list[tuple[str, dict[str, Any]]], behind: str, way: Any
) -> None:
    written = [(name, json.dumps(value, ensure_ascii=False)) for name, value in named]
    section = "".join(f"⟨b⟩functions.{n}:{k}⟨a⟩{v}⟨e⟩" for k, (n, v) in enumerate(written))
    answer = read(way(spelt(f"{content}⟨B⟩{section}⟨E⟩{behind}")))
    assert answer == ("", content + behind, calls(*written), "tool_calls")

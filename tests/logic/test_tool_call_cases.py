"""Tool calls as K2 writes them, and as it should not: each known stream, and every way to cut it.

The cases are those of other servers' parsers (vLLM, SGLang, dynamo, llama.cpp); where these differ
the name says whom a case follows. Each runs with markers as control tokens, spelt with ordinary
tokens, spelt byte by byte, and spelt otherwise.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from tool_call_streams import WAYS, aliased, as_text, as_tokens, calls, read, spelt

# name: (stream, reasoning, content, (name, arguments) of each call)
CASES: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "no call": ("hello", "", "hello", []),
    "one call": ('⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":1}⟨e⟩⟨E⟩', "", "", [("f", '{"x":1}')]),
    "content and two calls": (
        'Hi. ⟨B⟩⟨b⟩functions.f:0⟨a⟩{}⟨e⟩⟨b⟩functions.g:1⟨a⟩{"y":"<x>"}⟨e⟩⟨E⟩',
        "",
        "Hi. ",
        [("f", "{}"), ("g", '{"y":"<x>"}')],
    ),
    "id without prefix": ("⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("f", "{}")]),
    "hyphen": ("⟨B⟩⟨b⟩functions.my-tool:0⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("my-tool", "{}")]),
    "dot": ("⟨B⟩⟨b⟩functions.ns.tool:0⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("ns.tool", "{}")]),
    "undeclared namespace": ("⟨B⟩⟨b⟩functions.other.f:0⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("f", "{}")]),
    "underscore for colon (F1)": ("⟨B⟩⟨b⟩functions.f_0⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("f", "{}")]),
    "name alone": ("⟨B⟩⟨b⟩functions.f⟨a⟩{}⟨e⟩⟨E⟩", "", "", [("f", "{}")]),
    "bare counter (F6)": ('⟨B⟩⟨b⟩2⟨a⟩{"x":"y"}⟨e⟩⟨E⟩', "", "", [("f", '{"x":"y"}')]),
    "empty id (F6)": ('⟨B⟩⟨b⟩ ⟨a⟩{"z":1,"y":2}⟨e⟩⟨E⟩', "", "", [("g", '{"z":1,"y":2}')]),
    "foreign id (F1)": ('⟨B⟩⟨b⟩call_aB3⟨a⟩{"x":1}⟨e⟩⟨E⟩', "", "", [("f", '{"x":1}')]),
    "bare counter, keys of two tools": ('⟨B⟩⟨b⟩2⟨a⟩{"y":1}⟨e⟩⟨E⟩', "", "", []),
    "bare counter, keys of no tool": ('⟨B⟩⟨b⟩2⟨a⟩{"q":1}⟨e⟩⟨E⟩', "", "", []),
    "bare counter, no object": ("⟨B⟩⟨b⟩2⟨a⟩[1]⟨e⟩⟨E⟩", "", "", []),
    "an id that says nothing, then a call": (
        "⟨B⟩⟨b⟩???⟨a⟩{}⟨e⟩⟨b⟩functions.f:1⟨a⟩{}⟨e⟩⟨E⟩",
        "",
        "",
        [("f", "{}")],
    ),
    "undeclared tool (F7)": ('⟨B⟩⟨b⟩functions.rm:0⟨a⟩{"x":1}⟨e⟩⟨E⟩', "", "", []),
    "no section end (F2)": ('⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":1}⟨e⟩', "", "", [("f", '{"x":1}')]),
    "no call end, whole JSON (F2; dynamo, llama.cpp)": (
        '⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":1}',
        "",
        "",
        [("f", '{"x":1}')],
    ),
    "cut within JSON (F2)": ('⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":', "", "", []),
    "cut within a string": ('⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":"a\\', "", "", []),
    "cut before arguments": ("⟨B⟩⟨b⟩functions.f:0⟨a⟩", "", "", []),
    "cut within the id": ("hi⟨B⟩⟨b⟩functions.f", "", "hi", []),
    "cut at a bare counter": ('⟨B⟩⟨b⟩2⟨a⟩{"x":', "", "", []),
    "a call begins before its arguments do": (
        "⟨B⟩⟨b⟩functions.f:0⟨b⟩functions.g:1⟨a⟩{}⟨e⟩⟨E⟩",
        "",
        "",
        [("g", "{}")],
    ),
    "no section (F5)": ("⟨b⟩functions.f:0⟨a⟩{}⟨e⟩", "", "", [("f", "{}")]),
    "section end closes a call (F9)": (
        '⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":1}⟨E⟩',
        "",
        "",
        [("f", '{"x":1}')],
    ),
    "section end closes a call without arguments": (
        "⟨B⟩⟨b⟩functions.f:0⟨a⟩ ⟨E⟩",
        "",
        "",
        [("f", "{}")],
    ),
    "a call begins before the last has ended": (
        '⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x":1}⟨b⟩functions.g:1⟨a⟩{}⟨e⟩⟨E⟩',
        "",
        "",
        [("f", '{"x":1}'), ("g", "{}")],
    ),
    "white space everywhere (F10)": (
        '⟨B⟩ \n ⟨b⟩ functions.f:0 \n ⟨a⟩  {"x": 1} \n ⟨e⟩ \n\n ⟨b⟩\tg:1\t⟨a⟩\n{}⟨e⟩\n⟨E⟩\n',
        "",
        "",
        [("f", '{"x": 1}'), ("g", "{}")],
    ),
    "white space within arguments stays": (
        '⟨B⟩⟨b⟩f:0⟨a⟩{ \n "x" :\n "a  b" }⟨e⟩⟨E⟩',
        "",
        "",
        [("f", '{ \n "x" :\n "a  b" }')],
    ),
    "empty arguments (F13)": ("⟨B⟩⟨b⟩functions.f:0⟨a⟩  ⟨e⟩⟨E⟩", "", "", [("f", "{}")]),
    "an empty section": ("a⟨B⟩⟨E⟩", "", "a", []),
    "two sections": (
        "⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩\n⟨B⟩⟨b⟩g:1⟨a⟩{}⟨e⟩⟨E⟩",
        "",
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    "text behind the section (dynamo keeps it, vLLM drops it)": (
        "⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩\n\nDone.\n",
        "",
        "Done.\n",
        [("f", "{}")],
    ),
    "reasoning, content, call": (
        "<think>r</think>c⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩",
        "r",
        "c",
        [("f", "{}")],
    ),
    "section in reasoning (F4)": ("<think>r⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩", "r", "", [("f", "{}")]),
    "call in reasoning (F4, F5)": ("<think>r⟨b⟩f:0⟨a⟩{}⟨e⟩c", "r", "c", [("f", "{}")]),
    "reasoning again behind a call": (
        "<think>r⟨B⟩⟨b⟩f:0⟨a⟩{}⟨e⟩⟨E⟩<think>s</think>c",
        "rs",
        "c",
        [("f", "{}")],
    ),
    "reasoning without end": ("<think>r", "r", "", []),
    "the beginning of a marker at the end": ("a <", "", "a <", []),
    "the beginning of a marker in text": ("a <|tool_x <|to<|", "", "a <|tool_x <|to<|", []),
    "markers that mean nothing where they are": ("a⟨a⟩b⟨e⟩c⟨E⟩d", "", "abcd", []),
    "an argument marker in arguments": ("⟨b⟩f:0⟨a⟩{}⟨a⟩⟨e⟩", "", "", [("f", "{}")]),
    "think tokens in arguments": (
        '⟨b⟩f:0⟨a⟩{"x":"<think></think>"}⟨e⟩c',
        "",
        "c",
        [("f", '{"x":"<think></think>"}')],
    ),
    "quotes and escapes": (
        '⟨b⟩f:0⟨a⟩{"x":"\\\\\\"<\\\\", "é\\u00e9": "好"}⟨e⟩',
        "",
        "",
        [("f", '{"x":"\\\\\\"<\\\\", "é\\u00e9": "好"}')],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_known_stream_is_read_as_it_was_meant(name: str, way: Any) -> None:
    text, reasoning, content, named = CASES[name]
    reason = "tool_calls" if named else "stop"
    assert read(way(spelt(text))) == (reasoning, content, calls(*named), reason)


@pytest.mark.parametrize("spelling", [str, aliased])
@pytest.mark.parametrize("name", CASES)
def test_a_marker_spelt_over_two_tokens_is_the_same_wherever_it_is_cut(
    name: str, spelling: Callable[[str], str]
) -> None:
    text, reasoning, content, named = CASES[name]
    text = spelling(spelt(text))
    within_think = {
        i for m in re.finditer("</?think>", text) for i in range(m.start() + 1, m.end())
    }
    for border in set(range(len(text) + 1)) - within_think:
        ids = as_text(text[:border]) + as_text(text[border:])
        assert read(ids)[:3] == (reasoning, content, calls(*named)), border


@pytest.mark.parametrize("behind", ["</think>c⟨B⟩", "⟨B⟩", ""])
def test_a_prompt_that_opened_the_reasoning_needs_no_think_token(behind: str) -> None:
    text = spelt(f"r{behind}⟨b⟩functions.f:0⟨a⟩{{}}⟨e⟩⟨E⟩")
    content = "c" if "c" in behind else ""
    answer = read(as_tokens(text), thinking=True)
    assert answer == ("r", content, calls(("f", "{}")), "tool_calls")

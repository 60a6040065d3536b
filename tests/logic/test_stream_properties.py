"""Streams of any tokens: no text is lost or said twice, and byte borders make no difference.

Streams are written as markers, as control tokens or spelt, between words that no two places share,
so that it can be told where each has gone.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_call_streams import (
    ALIAS,
    BYTE_IDS,
    SHORT,
    THINK,
    TOKENIZER,
    TOOLS,
    as_tokens,
    check_order,
    deltas_of,
)

from hybrid_k2.text import Delta, TextStream, Tokenizer
from hybrid_k2.text.markers import TOOL_MARKERS
from hybrid_k2.text.tool_calls import CallArguments, CallDropped, CallStart

MARKERS = (*TOOL_MARKERS, *THINK)
SPELLINGS = (*TOOL_MARKERS, *ALIAS.values())

# A part of a stream: a control token by name, or text; WORD stands for a word of its own.
WORD = "\0"
WORDS = [WORD, WORD, f" {WORD}", f"{WORD}\n"]
TEXTS = [" \n", "functions.f:0", "g:1", "7", "{", '{"x": "', '"}', "}", "é你😀", "<|", '\\"']
parts = st.sampled_from(MARKERS).map(lambda name: ("marker", name)) | st.sampled_from(
    [*WORDS, *TEXTS, "<|tool_call", *SPELLINGS]
).map(lambda text: ("text", text))
streams = st.lists(parts, max_size=25).map(lambda found: named(found))


def named(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each WORD replaced by one that occurs nowhere else."""
    return [(kind, text.replace(WORD, f"w{k}w")) for k, (kind, text) in enumerate(found)]


def ids_of(stream: list[tuple[str, str]], encode: Any) -> list[int]:
    """Neighbouring texts are encoded as one, as a model writes them."""
    ids: list[int] = []
    for kind, group in groupby(stream, key=lambda part: part[0]):
        texts = [text for _, text in group]
        if kind == "marker":
            ids += [TOKENIZER.special_id(name) for name in texts]
        else:
            ids += encode("".join(texts))
    return ids


def in_bytes(text: str) -> list[int]:
    return [BYTE_IDS[byte] for byte in text.encode()]


def joined(deltas: list[Any]) -> list[Any]:
    """Deltas with what follows in the same place put together."""

    def place(delta: Any) -> Any:
        if isinstance(delta, Delta):
            return ("text", delta.channel)
        return ("arguments", delta.index) if isinstance(delta, CallArguments) else delta

    return [
        (where, "".join(delta.text for delta in group) if isinstance(where, tuple) else None)
        for where, group in groupby(deltas, key=place)
    ]


@settings(max_examples=400)
@given(streams)
def test_every_word_comes_out_once_but_for_arguments_of_dropped_calls(
    stream: list[tuple[str, str]],
) -> None:
    *deltas, _ = deltas_of(ids_of(stream, TOKENIZER.encode))
    check_order(deltas)
    out = "".join(
        delta.text if isinstance(delta, Delta | CallArguments) else delta.id_text
        for delta in deltas
        if isinstance(delta, Delta | CallArguments | CallDropped)
    )
    has_dropped = any(isinstance(delta, CallDropped) for delta in deltas)
    in_arguments = False
    for kind, text in stream:
        if text in (*TOOL_MARKERS, *ALIAS.values()):
            in_arguments = text in (SHORT["a"], ALIAS[SHORT["a"]]) or (
                in_arguments and kind == "text"  # it may be within a string
            )
        elif (word := text.strip()).startswith("w") and word.endswith("w"):
            assert out.count(word) == 1 or (out.count(word) == 0 and in_arguments and has_dropped)


@settings(max_examples=200)
@given(streams)
def test_where_no_call_is_written_every_character_comes_out(stream: list[tuple[str, str]]) -> None:
    """The beginning of a marker that never comes, and characters between think tokens, too."""
    stream = [part for part in stream if part[1] not in SPELLINGS]
    *deltas, _ = deltas_of(ids_of(stream, in_bytes))
    written = "".join(text for kind, text in stream if kind == "text")
    if not any(spelling in written for spelling in SPELLINGS):
        assert "".join(delta.text for delta in deltas) == written


@settings(max_examples=200)
@given(streams, st.data())
def test_a_stream_is_the_same_whole_in_bytes_and_cut_anywhere(
    stream: list[tuple[str, str]], data: st.DataObject
) -> None:
    def cut(text: str) -> list[int]:
        border = data.draw(st.integers(0, len(text)))
        return TOKENIZER.encode(text[:border]) + TOKENIZER.encode(text[border:])

    expected = joined(deltas_of(ids_of(stream, TOKENIZER.encode)))
    assert joined(deltas_of(ids_of(stream, in_bytes))) == expected
    assert joined(deltas_of(ids_of(stream, cut))) == expected


@pytest.mark.parametrize(
    "text",
    [
        '<think>r é</think>c ⟨B⟩⟨b⟩functions.f:0⟨a⟩{"x": "<|tool_call_end|> 你"}⟨e⟩⟨E⟩ d',
        "⟨b⟩3⟨a⟩{}⟨e⟩⟨b⟩rm:1⟨a⟩{}⟨e⟩ <|tool_calls_sect😀",
    ],
)
def test_a_long_stream_is_the_same_cut_at_every_byte(text: str) -> None:
    for short, name in SHORT.items():
        text = text.replace(f"⟨{short}⟩", name)
    whole = as_tokens(text)
    expected = joined(deltas_of(whole))
    starts = [sum(len(TOKENIZER.token_bytes(i)) for i in whole[:k]) for k in range(len(whole))]
    for cut in range(len(text.encode())):
        ids = []
        for start, token_id in zip(starts, whole, strict=True):
            spelt = TOKENIZER.token_bytes(token_id)
            is_cut = start < cut < start + len(spelt) and TOKENIZER.control_text(token_id) is None
            ids += [BYTE_IDS[byte] for byte in spelt] if is_cut else [token_id]
        assert joined(deltas_of(ids)) == expected, cut


@settings(max_examples=200)
@given(streams, st.sampled_from(["w1w", "é", "\n", "<|", "}"]), st.booleans())
def test_a_stop_string_takes_nothing_from_reasoning_and_calls_before_it(
    stream: list[tuple[str, str]], stop: str, thinking: bool
) -> None:
    """What comes out is the beginning of what would without it."""
    ids = ids_of(stream, TOKENIZER.encode)
    free = joined(deltas_of(ids, thinking=thinking)[:-1])
    stopped = joined(deltas_of(ids, thinking=thinking, stop=[stop])[:-1])
    content = [text for where, text in stopped if where == ("text", "content")]
    assert all(stop not in text for text in content)
    for (where, text), (same_place, whole) in zip(stopped, free, strict=False):
        if where != same_place:
            assert where == ("text", "reasoning") or same_place == ("text", "content")
            break
        assert text is None or whole.startswith(text)


@settings(max_examples=100)
@given(
    ids=st.lists(st.integers(163_584, 163_839) | st.integers(0, 163_839), max_size=60),
    thinking=st.booleans(),
)
def test_any_of_k2s_tokens_are_read_and_leak_no_marker(
    k2_tokenizer: Tokenizer, ids: list[int], thinking: bool
) -> None:
    for tools in (TOOLS, [], None):
        stream = TextStream(k2_tokenizer, tools=tools, thinking=thinking)
        deltas = [delta for token_id in ids for delta in stream.push(token_id)] + stream.finish()
        check_order(deltas)
        assert stream.finish() == []
        texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
        assert not any(marker in text for text in texts for marker in MARKERS)
        if tools is None:
            kept = [i for i in ids if k2_tokenizer.control_text(i) is None]
            if len(kept) == len(ids):
                assert "".join(texts) == k2_tokenizer.decode(ids)
            assert not any(isinstance(delta, CallStart) for delta in deltas)


@pytest.fixture(scope="module")
def k2_tokenizer(k2_data: Path) -> Tokenizer:
    return Tokenizer.from_directory(k2_data)

"""The stream of an answer: whatever the token borders, the same text on the same channels.

Oracle: the whole answer decoded at once and cut at the first stop string.
"""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_factory import small_vocabulary

from hybrid_k2.errors import RequestError, TokenizerError
from hybrid_k2.text import Tokenizer
from hybrid_k2.text.markers import THINK_BEGIN, THINK_END, TOOL_MARKERS
from hybrid_k2.text.stream import Delta, TextStream

TOKENIZER = Tokenizer(small_vocabulary(thinking=True))
OPEN, CLOSE = TOKENIZER.special_id(THINK_BEGIN), TOKENIZER.special_id(THINK_END)
SECTION = TOKENIZER.special_id("<|tool_calls_section_begin|>")


def run(ids: list[int], stop: tuple[str, ...] = (), thinking: bool = False) -> dict[str, str]:
    """All text by channel; checks on the way that every delta is worth sending."""
    stream = TextStream(TOKENIZER, stop, thinking)
    deltas = [delta for token_id in ids for delta in stream.push(token_id)] + stream.finish()
    assert all(delta.text for delta in deltas)
    assert stream.finish() == []
    return {
        channel: "".join(d.text for d in deltas if d.channel == channel)
        for channel in ("reasoning", "content")
    }


def byte_ids(text: str) -> list[int]:
    """One token a byte: the finest split there is."""
    return [BYTE_IDS[value] for value in text.encode()]


BYTE_IDS = {TOKENIZER.token_bytes(i)[0]: i for i in range(256)}
answers = st.text(st.sampled_from("abcab<|>\n ééé你好😀"), max_size=40)
stops = st.lists(st.text(st.sampled_from("abc<|é你😀"), min_size=1, max_size=4), max_size=4)


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A text and its ids, the text cut anywhere, also inside characters, before encoding."""
    text = draw(answers)
    ids: list[int] = []
    for word in text.split("a"):
        pieces = TOKENIZER.encode(word) if draw(st.booleans()) else byte_ids(word)
        ids += [*pieces, BYTE_IDS[ord("a")]]
    return text, ids[:-1]


def cut(text: str, stop: list[str]) -> str:
    """What comes before the stop string that is complete first, found character by character."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=400)
@given(tokenised(), stops)
def test_content_ends_before_the_first_stop_string_for_every_split(
    answer: tuple[str, list[int]], stop: list[str]
) -> None:
    text, ids = answer
    assert run(ids, tuple(stop)) == {"reasoning": "", "content": cut(text, stop)}
    assert run(byte_ids(text), tuple(stop))["content"] == cut(text, stop)


@settings(max_examples=200)
@given(tokenised(), stops)
def test_nothing_that_may_belong_to_a_stop_string_leaks_at_any_point(
    answer: tuple[str, list[int]], stop: list[str]
) -> None:
    """After every token the text given out is a prefix of what a later token cannot take back."""
    text, ids = answer
    expected = cut(text, stop)
    stream = TextStream(TOKENIZER, stop)
    given_out = ""
    for token_id in ids:
        given_out += "".join(delta.text for delta in stream.push(token_id))
        assert expected.startswith(given_out)
        assert not any(s in given_out for s in stop)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 255), max_size=30))
def test_bytes_that_are_no_utf8_come_out_as_decoding_them_at_once(values: list[int]) -> None:
    ids = [BYTE_IDS[value] for value in values]
    assert run(ids)["content"] == bytes(values).decode("utf-8", errors="replace")


def test_of_two_stop_strings_in_one_token_the_one_complete_first_counts() -> None:
    """As it would if the letters arrived one by one, though `ello` begins before `l`."""
    assert len(TOKENIZER.encode("hello")) == 1
    for ids in (TOKENIZER.encode("hello"), byte_ids("hello")):
        assert run(ids, ("ello", "l"))["content"] == "he"


def test_a_character_comes_out_with_its_last_byte_and_not_before() -> None:
    stream = TextStream(TOKENIZER)
    deltas = [stream.push(token_id) for token_id in byte_ids("😀a")]
    assert deltas == [[], [], [], [Delta("content", "😀")], [Delta("content", "a")]]


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    stream = TextStream(TOKENIZER, stop=("\n\n",))
    assert [stream.push(i) for i in byte_ids("a\nb")] == [
        [Delta("content", "a")],
        [],
        [Delta("content", "\nb")],
    ]


def test_a_held_back_beginning_of_a_stop_string_comes_out_at_the_end() -> None:
    assert run(byte_ids("a <"), ("<|end|>",))["content"] == "a <"


def test_the_stop_string_found_is_reported_and_ends_the_stream() -> None:
    stream = TextStream(TOKENIZER, stop=("b", "ab"))
    assert stream.stopped is None
    deltas = [d for i in byte_ids("xabxyz") for d in stream.push(i)] + stream.finish()
    assert deltas == [Delta("content", "x")]
    assert stream.stopped == "ab"


def test_an_empty_stop_string_is_an_error() -> None:
    with pytest.raises(RequestError, match="stop string is empty"):
        TextStream(TOKENIZER, stop=("a", ""))


# Reasoning -------------------------------------------------------------------------------------

R, C = TOKENIZER.encode("reason"), TOKENIZER.encode("content")


@pytest.mark.parametrize(
    ("ids", "thinking", "reasoning", "content"),
    [
        ([OPEN, *R, CLOSE, *C], True, "reason", "content"),
        ([*R, CLOSE, *C], True, "reason", "content"),
        ([OPEN, *R], True, "reason", ""),
        ([OPEN, CLOSE, *C], True, "", "content"),
        ([*C], False, "", "content"),
        ([CLOSE, *C], False, "", "content"),
        ([OPEN, *R, CLOSE, *C], False, "reason", "content"),
        ([OPEN, *R, OPEN, *R, CLOSE, *C], True, "reasonreason", "content"),
        ([OPEN, *R, SECTION, *C], True, "reason", "content"),
        (TOKENIZER.encode("<think>a</think>"), False, "", "<think>a</think>"),
        ([OPEN, BYTE_IDS[0xE4], CLOSE, BYTE_IDS[0xBD], *C], True, "\ufffd", "\ufffdcontent"),
    ],
)
def test_reasoning_and_content_are_told_apart_by_the_think_tokens(
    ids: list[int], thinking: bool, reasoning: str, content: str
) -> None:
    assert run(ids, thinking=thinking) == {"reasoning": reasoning, "content": content}


def test_stop_strings_end_the_content_and_not_the_reasoning() -> None:
    ids = [OPEN, *R, CLOSE, *C]
    assert run(ids, ("ea", "te"), True) == {"reasoning": "reason", "content": "con"}


def test_content_held_back_comes_before_later_reasoning() -> None:
    stream = TextStream(TOKENIZER, stop=("t!",))
    ids = [*byte_ids("bet"), OPEN, *byte_ids("r")]
    deltas = [d for i in ids for d in stream.push(i)] + stream.finish()
    joined = [(c, "".join(d.text for d in ds)) for c, ds in groupby(deltas, lambda d: d.channel)]
    assert joined == [("content", "bet"), ("reasoning", "r")]


# Control tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("token_id", sorted({*range(456, 712)} - {OPEN, CLOSE}))
def test_control_tokens_vanish(token_id: int) -> None:
    assert run([*C, token_id, *C])["content"] == "contentcontent"


@pytest.mark.parametrize("name", TOOL_MARKERS)
def test_without_tools_a_marker_that_the_model_spells_is_text(name: str) -> None:
    assert run(TOKENIZER.encode(name))["content"] == name


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="token id 712"):
        TextStream(TOKENIZER).push(712)

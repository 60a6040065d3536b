"""What a whole answer of K2 may be: reasoning, then JSON, text, or a section of tool calls.

    answer  := [ text "</think>" ] content [ section ]
    section := "<|tool_calls_section_begin|>" call+ "<|tool_calls_section_end|>"
    call    := "<|tool_call_begin|>" id "<|tool_call_argument_begin|>" json "<|tool_call_end|>"
    id      := "functions." name ":" number, where numbers count the dialogue's calls

Reasoning is free, content is free or fits a schema, and every token of a section is checked: only
declared names, arguments that fit their schemas. Markers are control tokens; only what opens calls
may be spelt as text instead, as the parser in `tool_calls.py` has it.
Keeps to the channels of `stream.py`: a call ends reasoning, too. Knows nothing of HTTP, nor of how
tokens are drawn.
"""

import itertools
from collections.abc import Container, Generator, Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_k2.errors import TokenizerError
from hybrid_k2.text.json_grammar import JsonGrammar
from hybrid_k2.text.markers import (
    THINK_BEGIN,
    THINK_END,
    TOOL_ARGUMENT_BEGIN,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_MARKER_ALIASES,
    TOOL_MARKERS,
    TOOL_SECTION_BEGIN,
    TOOL_SECTION_END,
)
from hybrid_k2.text.tokenizer import Tokenizer

# How a model may spell what opens a call with tokens of text.
_OPENERS = {
    spelling.encode(): marker
    for spelling, marker in ({name: name for name in TOOL_MARKERS} | TOOL_MARKER_ALIASES).items()
    if marker in (TOOL_SECTION_BEGIN, TOOL_CALL_BEGIN)
}
_TAIL_BYTES = 64  # of text: an opener and some white space behind it


@dataclass(frozen=True, slots=True)
class _Step:
    """mask: bool [vocab], what may come next, None for anything; may_end: or nothing may."""

    mask: np.ndarray | None
    may_end: bool = False


# A part of an answer yields what may come next and is sent the token that came. What it returns is
# the marker that ended it and begins the next part, None where there is no such marker.
_Part = Generator[_Step, int, int | None]


class AnswerGrammar:
    """The answers that one request accepts; immutable."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool = False,
        content: JsonGrammar | None = None,
        arguments: Mapping[str, JsonGrammar] | None = None,
        must_call: bool = False,
        parallel: bool = True,
        first_number: int = 0,
    ) -> None:
        """thinking: the answer begins with reasoning.  content: None for free text.

        arguments: for the name of each tool that may be called.  must_call: no content comes then.
        parallel: False for at most one call.  first_number: how many calls the dialogue has had.
        Raises TokenizerError where the vocabulary lacks a marker.
        """
        self._tokenizer = tokenizer
        self._thinking = thinking
        self._content = content
        self._arguments = dict(arguments or {})
        self._must_call = must_call
        self._parallel = parallel
        self._first_number = first_number
        markers = TOOL_MARKERS if arguments else ()
        self._ids = {name: _id(tokenizer, name) for name in markers}
        if thinking:
            self._ids |= {name: _id(tokenizer, name) for name in (THINK_BEGIN, THINK_END)}
        self._section = self._ids.get(TOOL_SECTION_BEGIN)

    def start(self) -> "AnswerConstraint":
        """The constraint of an answer that has no token yet."""
        return AnswerConstraint(self._answer())

    def _answer(self) -> _Part:
        if self._must_call or self._content is not None:
            marker = yield from self._demanded()
        else:
            calls = (self._ids[TOOL_SECTION_BEGIN], self._ids[TOOL_CALL_BEGIN])
            marker = yield from self._text_until(calls, _Step(None, may_end=True))
        if marker is not None:
            yield from self._calls(marker)
        return None

    def _demanded(self) -> _Part:
        """Reasoning and content of an answer that must have a form."""
        if self._thinking:
            ends = (self._ids[THINK_END], self._section)
            marker = yield from self._text_until(ends, self._thoughts())
            if marker != self._ids[THINK_END]:
                return marker
        if self._must_call:
            return (yield self._only(self._section))
        return (yield from self._json_or_section())

    def _text_until(self, ends: Container[int | None], step: _Step) -> _Part:
        """One step again and again, to the token that ends it or completes a spelt opening.

        Where there are tools the stream's parser takes spelt markers for real ones.
        """
        openers = _OPENERS if self._arguments else {}
        tail = b""
        while (token_id := (yield step)) not in ends:
            tail = (tail + self._tokenizer.token_bytes(token_id))[-_TAIL_BYTES:]
            for spelling, marker in openers.items():
                if tail.rstrip().endswith(spelling):
                    return self._ids[marker]
        return token_id

    def _thoughts(self) -> _Step:
        """Text, and of control tokens only those that a demanded answer can go on from."""
        mask = np.full(self._tokenizer.vocab_size, True)
        mask[list(self._tokenizer.control_ids)] = False
        mask[[self._ids[THINK_BEGIN], self._ids[THINK_END]]] = True
        if self._section is not None:
            mask[self._section] = True
        return _Step(mask)

    def _json_or_section(self) -> _Part:
        value, first = self._content.start(), self._section
        while not value.is_done:
            mask = value.mask()
            if first is not None:
                mask[first] = True
            token_id = yield _Step(mask, value.may_end)
            if token_id == first:
                return token_id
            value.accept(token_id)
            first = None
        return None

    def _calls(self, marker: int) -> _Part:
        """Calls behind the marker that opened them; a model may leave out the section's own."""
        begin, end = self._ids[TOOL_CALL_BEGIN], self._ids[TOOL_SECTION_END]
        for number in itertools.count(self._first_number):
            if marker != begin:
                yield self._only(begin)
            name = yield from self._name(number)
            yield from self._json_arguments(self._arguments[name])
            marker = yield self._only(end, *([begin] if self._parallel else []))
            if marker == end:
                break
        return None

    def _name(self, number: int) -> Generator[_Step, int, str]:
        """A call's id and the marker behind it, in the tokens that the tokenizer makes of it."""
        behind = self._ids[TOOL_ARGUMENT_BEGIN]
        left = {
            name: [*self._tokenizer.encode(f"functions.{name}:{number}"), behind]
            for name in self._arguments
        }
        for position in itertools.count():
            token_id = yield self._only(*(ids[position] for ids in left.values()))
            left = {name: ids for name, ids in left.items() if ids[position] == token_id}
            if token_id == behind:
                break
        return next(iter(left))

    def _json_arguments(self, grammar: JsonGrammar) -> _Part:
        """A call's arguments and the marker behind them."""
        value, end = grammar.start(), self._ids[TOOL_CALL_END]
        while not value.is_done:
            mask = value.mask()
            mask[end] = value.may_end
            token_id = yield _Step(mask)
            if token_id == end:
                return None
            value.accept(token_id)
        yield self._only(end)
        return None

    def _only(self, *token_ids: int) -> _Step:
        mask = np.zeros(self._tokenizer.vocab_size, dtype=bool)
        mask[list(token_ids)] = True
        return _Step(mask)


class AnswerConstraint:
    """One answer, token by token; what the engine asks is in `engine/constraint.py`."""

    def __init__(self, answer: _Part) -> None:
        self._answer = answer
        self._next: _Step | None = next(answer)

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return self._next is None or self._next.may_end

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        return self._next is None

    def mask(self) -> np.ndarray | None:
        """bool [vocab_size], what may come next; None where anything may."""
        return None if self._next is None else self._next.mask

    def accept(self, token_id: int) -> None:
        """Takes the next token. Raises RequestError where a schema becomes too complex."""
        try:
            self._next = self._answer.send(token_id)
        except StopIteration:
            self._next = None


def _id(tokenizer: Tokenizer, name: str) -> int:
    token_id = tokenizer.special_id(name)
    if token_id is None:
        raise TokenizerError(
            f"the tokenizer has no control token {name}; answers cannot be checked"
        )
    return token_id

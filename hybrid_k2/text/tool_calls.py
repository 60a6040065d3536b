"""Tool calls out of an answer while it arrives: a state machine over pieces of text and markers.

A stage of `stream.py`. What it knows is how K2 writes calls and what goes wrong with that: sections
without an end, ids without a name, markers spelt with ordinary tokens, sometimes otherwise than the
vocabulary has them. Whatever comes, it raises nothing and lets no marker through as text. Knows
nothing of HTTP or of what a tool does.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from hybrid_k2.text.call_ids import CallIds
from hybrid_k2.text.held_back import num_held_back
from hybrid_k2.text.markers import (
    THINK_BEGIN,
    THINK_END,
    TOOL_ARGUMENT_BEGIN,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_MARKER_ALIASES,
    TOOL_MARKERS,
    TOOL_SECTION_END,
)
from hybrid_k2.text.pieces import Piece

# What follows a call's marker and is longer is no id; names have up to 64 characters, often fewer.
MAX_ID_CHARS = 256

_MARKER_OF_SPELLING = {name: name for name in TOOL_MARKERS} | TOOL_MARKER_ALIASES
_SPELLING = re.compile("|".join(map(re.escape, _MARKER_OF_SPELLING)))
# The rest of a JSON string, with its closing quote where that has come; never half an escape.
_STRING_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*("?)', re.DOTALL)
# Ids that say nothing of the tool: a bare counter, or what other APIs number calls with.
_NAMELESS_ID = re.compile(r"(functions\.?)?:?\d*|(call|toolu)[_-][\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. index: 0 for an answer's first; id: unlike all others of the dialogue."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments; all of them joined are its JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is over. is_complete: False where the answer ended within its arguments."""

    index: int
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class CallDropped:
    """The model wrote a call that no client can answer; nothing else of it comes out."""

    id_text: str
    reason: str


CallDelta = CallStart | CallArguments | CallEnd | CallDropped


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call; arguments: JSON text as the model wrote it, which may be wrong JSON."""

    id: str
    name: str
    arguments: str


def collect_calls(deltas: Iterable[object]) -> list[ToolCall]:
    """Returns the complete calls of an answer's deltas, in order; others may be among them."""
    starts: dict[int, CallStart] = {}
    arguments: dict[int, list[str]] = {}
    calls: list[ToolCall] = []
    for delta in deltas:
        if isinstance(delta, CallStart):
            starts[delta.index], arguments[delta.index] = delta, []
        elif isinstance(delta, CallArguments):
            arguments[delta.index].append(delta.text)
        elif isinstance(delta, CallEnd) and delta.is_complete:
            start = starts[delta.index]
            calls.append(ToolCall(start.id, start.name, "".join(arguments[delta.index])))
    return calls


class DeclaredTools:
    """The names a model may call, and how to read them out of the ids it writes."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """tools: OpenAI's list; what is no function with a name is passed over."""
        self._keys_of_name: dict[str, frozenset[str]] = {}
        for tool in tools:
            function = tool.get("function")
            if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
                self._keys_of_name[name] = _property_names(function.get("parameters"))

    @property
    def names(self) -> Collection[str]:
        """The declared names, in the order of declaration."""
        return self._keys_of_name.keys()

    def name_in(self, id_text: str) -> str | None:
        """Returns the declared name that an id means: functions.<name>:<counter>, or nearly so."""
        head, colon, counter = id_text.rpartition(":")
        whole = head if colon and counter.isdecimal() else id_text
        name = whole.removeprefix("functions.")
        last = name.rpartition(".")[2]
        candidates = (whole, name, last, re.sub(r"[_-]\d+$", "", name))
        return next((c for c in candidates if c in self._keys_of_name), None)

    def name_by_keys(self, arguments: str) -> str | None:
        """Returns the one tool whose parameters the arguments' keys fit best, the only one of one.

        A key that a tool has counts for it, one that it lacks against it.
        """
        if len(self._keys_of_name) == 1:
            return next(iter(self._keys_of_name))
        given = frozenset(_json_object(arguments) or ())
        fitting = {n: keys for n, keys in self._keys_of_name.items() if given & keys}
        scores = {n: len(given & keys) - len(given - keys) for n, keys in fitting.items()}
        best = [n for n, score in scores.items() if score == max(scores.values())]
        return best[0] if len(best) == 1 else None


class _State(Enum):
    TEXT = auto()
    BETWEEN = auto()  # behind a section's begin or end, or a call's end: white space is dropped
    ID = auto()
    ARGUMENTS = auto()


@dataclass(slots=True)
class _Call:
    """The call being read. name: None where the arguments' keys will tell."""

    id_text: str
    name: str | None
    index: int | None = None  # once its start has come out
    arguments: list[str] = field(default_factory=list)
    blank: str = ""  # white space that is dropped if the arguments end behind it


class ToolCalls:
    """Pieces in; pieces and call deltas out. Markers pass, for the next stage to end reasoning.

    - A section need not be there, nor its end; text behind it is text of the answer.
    - A call ends at its marker or its section's, complete whatever its arguments; where another
      marker or the end of the answer cuts it, it is complete if its arguments are.
    - A marker spelt with ordinary tokens counts, but not within a JSON string of arguments, where a
      model may well write about markers. Think tokens are text within arguments.
    - An id that fits no declared tool drops the call.
    """

    def __init__(self, tools: DeclaredTools, call_ids: CallIds, parallel: bool = True) -> None:
        """parallel: False ends everything with the first call."""
        self._tools = tools
        self._call_ids = call_ids
        self._parallel = parallel
        self._state = _State.TEXT
        self._held = ""  # text that may begin a marker
        self._in_string = False  # of JSON, in arguments
        self._id = ""
        self._call: _Call | None = None  # None in ARGUMENTS: those of a dropped call
        self._num_started = 0
        self._out: list[Piece | CallDelta] = []
        self.is_finished = False

    def push(self, pieces: Iterable[Piece]) -> list[Piece | CallDelta]:
        """Returns what has become certain."""
        for piece in pieces:
            if piece.is_marker:
                self._read(is_all=True)
                self._on_marker(piece.text)
            else:
                self._held += piece.text
                self._read()
        return self._taken()

    def finish(self) -> list[Piece | CallDelta]:
        """Returns what was held back; a call whose arguments are not complete is cut."""
        self._read(is_all=True)
        self._leave_call(is_closed=False)
        self._state = _State.TEXT
        return self._taken()

    def _taken(self) -> list[Piece | CallDelta]:
        out, self._out = self._out, []
        return out

    def _emit(self, item: Piece | CallDelta) -> None:
        if not self.is_finished:
            self._out.append(item)

    def _read(self, is_all: bool = False) -> None:
        """Takes what is certain from the text held; is_all: nothing follows it directly."""
        while self._held:
            text, marker = self._next(is_all)
            if not text:
                return
            self._held = self._held[len(text) :]
            if marker is None:
                self._on_text(text)
            else:
                self._on_marker(marker)

    def _next(self, is_all: bool) -> tuple[str, str | None]:
        """Returns the held text's next certain stretch, and the marker if it spells one."""
        held = self._held
        if not self._tools.names:  # a model that has nothing to call writes about markers
            return held, None
        if self._in_string:
            rest = _STRING_REST.match(held)
            assert rest is not None  # it matches the empty text, too
            self._in_string = not rest[1]
            return (held if is_all and not rest[0] else rest[0]), None
        quote_end = held.find('"') + 1 if self._state is _State.ARGUMENTS else 0
        found = _SPELLING.search(held, 0, quote_end or len(held))
        if found is not None and found.start() == 0:
            return found[0], _MARKER_OF_SPELLING[found[0]]
        if found is not None:
            return held[: found.start()], None
        if quote_end:
            self._in_string = True
            return held[:quote_end], None
        num_held = 0 if is_all else num_held_back(held, _MARKER_OF_SPELLING)
        return held[: len(held) - num_held], None

    def _on_text(self, text: str) -> None:
        if self._state is _State.ARGUMENTS:
            if self._call is not None:
                self._add_arguments(self._call, text)
        elif self._state is _State.ID:
            self._id += text
            if len(self._id) > MAX_ID_CHARS:
                self._state = _State.TEXT
                self._emit(Piece(self._taken_id()))
        else:
            text = text.lstrip() if self._state is _State.BETWEEN else text
            if text:
                self._state = _State.TEXT
                self._emit(Piece(text))

    def _on_marker(self, marker: str) -> None:
        if marker in (THINK_BEGIN, THINK_END):
            if self._state in (_State.ID, _State.ARGUMENTS):
                self._on_text(marker)
                return
            self._state = _State.TEXT
        elif marker == TOOL_ARGUMENT_BEGIN:
            if self._state is _State.ID:
                self._open_call(self._taken_id().strip())
            return
        else:
            self._leave_call(is_closed=marker in (TOOL_CALL_END, TOOL_SECTION_END))
            self._state = _State.ID if marker == TOOL_CALL_BEGIN else _State.BETWEEN
        self._emit(Piece(marker, is_marker=True))

    def _taken_id(self) -> str:
        taken, self._id = self._id, ""
        return taken

    def _open_call(self, id_text: str) -> None:
        self._state = _State.ARGUMENTS
        name = self._tools.name_in(id_text)
        if name is not None or _NAMELESS_ID.fullmatch(id_text):
            self._call = _Call(id_text, name)
        else:
            self._emit(CallDropped(id_text, "no declared tool has this name"))

    def _add_arguments(self, call: _Call, text: str) -> None:
        """Takes the next piece of the arguments; white space around them is not part of them."""
        text = call.blank + text if call.arguments else text.lstrip()
        certain = text.rstrip()
        call.blank = text[len(certain) :]
        if certain:
            call.arguments.append(certain)
            if call.name is not None:
                self._emit_arguments(call, call.name, certain)

    def _emit_arguments(self, call: _Call, name: str, text: str) -> None:
        if call.index is None:
            call.index = self._num_started
            self._num_started += 1
            self._emit(CallStart(call.index, self._call_ids.new(name), name))
        self._emit(CallArguments(call.index, text))

    def _leave_call(self, is_closed: bool) -> None:
        """Ends what call there is; is_closed: by a marker that says so."""
        self._in_string = False
        call, self._call = self._call, None
        if self._state is _State.ID:
            self._emit(CallDropped(self._taken_id().strip(), "it has no arguments"))
        elif call is not None:
            self._end_call(call, is_closed)

    def _end_call(self, call: _Call, is_closed: bool) -> None:
        arguments = "".join(call.arguments)
        is_complete = is_closed or _json_object(arguments) is not None
        name = call.name or self._tools.name_by_keys(arguments)
        if call.index is None and is_complete and name is not None:
            self._emit_arguments(call, name, arguments or "{}")
        if call.index is None:
            reason = "it was cut" if name else "its id names no tool and its arguments fit none"
            self._emit(CallDropped(call.id_text, reason))
            return
        self._emit(CallEnd(call.index, is_complete))
        self.is_finished = not self._parallel


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _property_names(parameters: Any) -> frozenset[str]:
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return frozenset(properties) if isinstance(properties, Mapping) else frozenset()

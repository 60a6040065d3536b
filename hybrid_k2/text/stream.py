"""An answer while it arrives: token ids in, pieces of content, of reasoning and of tool calls out.

A pipeline of stages, each with push and finish: `Pieces` turns ids into whole characters and
markers, `ToolCalls` (where there are tools) takes calls out, `_Channels` tells reasoning from
content, `_StopStrings` ends the answer at a stop string. What has been given out is never taken
back, and where the model put its token borders makes no difference to what comes out. Knows nothing
of the engine, of terminals or of HTTP.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybrid_k2.errors import RequestError
from hybrid_k2.text.call_ids import CallIds
from hybrid_k2.text.held_back import num_held_back
from hybrid_k2.text.markers import THINK_BEGIN, THINK_END, TOOL_CALL_BEGIN, TOOL_SECTION_BEGIN
from hybrid_k2.text.pieces import Piece, Pieces
from hybrid_k2.text.tokenizer import Tokenizer
from hybrid_k2.text.tool_calls import CallDelta, CallEnd, DeclaredTools, ToolCalls

Channel = Literal["content", "reasoning"]

# A model may call a tool without closing its thoughts.
_CHANNEL_BEHIND: Mapping[str, Channel] = {
    THINK_BEGIN: "reasoning",
    THINK_END: "content",
    TOOL_SECTION_BEGIN: "content",
    TOOL_CALL_BEGIN: "content",
}


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: non-empty text on one channel."""

    channel: Channel
    text: str


class TextStream:
    """One answer: push() every id, then finish() once; generating can end once `is_finished`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        thinking: bool = False,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        parallel_tool_calls: bool = True,
    ) -> None:
        """stop: the answer's content ends before the first of these; none may be empty.

        thinking: the answer begins with reasoning (ChatTemplate.thinking says so).
        tools: what the model may call, OpenAI's list; an empty one drops all calls. None: only
        text comes out, of calls all but their markers.
        history: the messages answered, which the template rendered; ids of calls continue theirs.
        parallel_tool_calls: False ends the answer with its first call.
        """
        if "" in stop:
            raise RequestError("a stop string is empty; it must have at least one character")
        self._pieces = Pieces(tokenizer)
        self._calls: ToolCalls | None = None
        if tools is not None:
            declared, call_ids = DeclaredTools(tools), CallIds.after(history)
            self._calls = ToolCalls(declared, call_ids, parallel_tool_calls)
        self._channels = _Channels(thinking)
        self._stop_strings = _StopStrings(stop)
        self._has_call = self._has_cut_call = False

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer, or None."""
        return self._stop_strings.found

    @property
    def is_finished(self) -> bool:
        """True once nothing more will come out, whatever the model goes on to say."""
        return self.stopped is not None or (self._calls is not None and self._calls.is_finished)

    def push(self, token_id: int) -> list[Delta | CallDelta]:
        """Returns what the token made certain: often one delta, at times none or several."""
        return self._read(self._pieces.push(token_id))

    def finish(self) -> list[Delta | CallDelta]:
        """Returns what was held back; incomplete characters become U+FFFD."""
        deltas = self._read(self._pieces.finish())
        if self._calls is not None:
            deltas += self._surface(self._calls.finish())
        return deltas + self._stop_strings.finish()

    def finish_reason(self, reason: str) -> str:
        """Returns "tool_calls" where there is a call to answer, else why the engine stopped.

        An answer that its length cut within a call keeps "length", whatever other calls it has.
        """
        is_cut = reason == "length" and self._has_cut_call
        return "tool_calls" if self._has_call and not is_cut else reason

    def _read(self, pieces: list[Piece]) -> list[Delta | CallDelta]:
        return self._surface(pieces if self._calls is None else self._calls.push(pieces))

    def _surface(self, items: Sequence[Piece | CallDelta]) -> list[Delta | CallDelta]:
        deltas = self._stop_strings.push(self._channels.push(items))
        for delta in deltas:
            if isinstance(delta, CallEnd):
                self._has_call |= delta.is_complete
                self._has_cut_call |= not delta.is_complete
        return deltas


class _Channels:
    """Puts text on the channel that the markers before it say; the markers vanish."""

    def __init__(self, thinking: bool) -> None:
        self._channel: Channel = "reasoning" if thinking else "content"

    def push(self, items: Iterable[Piece | CallDelta]) -> list[Delta | CallDelta]:
        deltas: list[Delta | CallDelta] = []
        for item in items:
            if not isinstance(item, Piece):
                deltas.append(item)
            elif item.is_marker:
                self._channel = _CHANNEL_BEHIND.get(item.text, self._channel)
            else:
                deltas.append(Delta(self._channel, item.text))
        return deltas


class _StopStrings:
    """Ends the content before the first stop string to be complete; all else passes untouched.

    First means the earliest end, then the earliest start: the only order that does not depend on
    how much text arrives at once.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, deltas: Iterable[Delta | CallDelta]) -> list[Delta | CallDelta]:
        out: list[Delta | CallDelta] = []
        for delta in deltas:
            if self.found is not None:
                break
            if isinstance(delta, Delta) and delta.channel == "content":
                out += self._push(delta.text)
            else:
                out += [*self.finish(), delta]
        return out

    def finish(self) -> list[Delta | CallDelta]:
        held, self._held = self._held, ""
        return [Delta("content", held)] if held else []

    def _push(self, text: str) -> list[Delta]:
        text = self._held + text
        ends = [(text.find(stop) + len(stop), stop) for stop in self._stop if stop in text]
        if ends:
            end, self.found = min(ends, key=lambda found: (found[0], -len(found[1])))
            certain, self._held = text[: end - len(self.found)], ""
        else:
            num_held = num_held_back(text, self._stop)
            certain, self._held = text[: len(text) - num_held], text[len(text) - num_held :]
        return [Delta("content", certain)] if certain else []

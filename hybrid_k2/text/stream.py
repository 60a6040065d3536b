"""An answer while it arrives: token ids in, pieces of content and of reasoning out.

A pipeline of stages, each with push and finish: `_Channels` turns ids into pieces of whole
characters, `_StopStrings` ends the answer at a stop string; a stage that reads tool calls belongs
between the two. What has been given out is never taken back, and where the model put its token
borders makes no difference to what comes out. Knows nothing of the engine, of terminals or of HTTP.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hybrid_k2.errors import RequestError
from hybrid_k2.text.markers import (
    THINK_BEGIN,
    THINK_END,
    TOOL_CALL_BEGIN,
    TOOL_MARKERS,
    TOOL_SECTION_BEGIN,
)
from hybrid_k2.text.tokenizer import Tokenizer

Channel = Literal["content", "reasoning"]

_ENDS_REASONING = (THINK_END, TOOL_SECTION_BEGIN, TOOL_CALL_BEGIN)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: non-empty text on one channel.

    is_marker: between stages, the text is the name of a tool-call token, not spelt by the model.
    """

    channel: Channel
    text: str
    is_marker: bool = False


class TextStream:
    """One answer: push() every id, then finish() once; generating can end when `stopped` is set."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), thinking: bool = False
    ) -> None:
        """stop: the answer's content ends before the first of these; none may be empty.

        thinking: the answer begins with reasoning (ChatTemplate.thinking says so).
        """
        if "" in stop:
            raise RequestError("a stop string is empty; it must have at least one character")
        self._channels = _Channels(tokenizer, thinking)
        self._stop_strings = _StopStrings(stop)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer, or None; once set, nothing more comes out."""
        return self._stop_strings.found

    def push(self, token_id: int) -> list[Delta]:
        """Returns what the token made certain: often one delta, at times none or several."""
        return self._stop_strings.push(self._channels.push(token_id))

    def finish(self) -> list[Delta]:
        """Returns what was held back; incomplete characters become U+FFFD."""
        return self._stop_strings.push(self._channels.finish()) + self._stop_strings.finish()


class _Channels:
    """Ids to deltas: think markers switch the channel and vanish, as do all other control tokens.

    The five tool-call markers come out on the content channel, flagged; the one that opens a call
    ends reasoning too, as the model may call a tool without closing its thoughts.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool) -> None:
        self._tokenizer = tokenizer
        self._channel: Channel = "reasoning" if thinking else "content"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> list[Delta]:
        name = self._tokenizer.control_text(token_id)
        if name is None:
            return self._deltas(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
        deltas: list[Delta] = []
        if name == THINK_BEGIN:
            deltas = self._switch("reasoning")
        elif name in _ENDS_REASONING:
            deltas = self._switch("content")
        if name in TOOL_MARKERS:
            deltas += self.finish()
            deltas.append(Delta(self._channel, name, is_marker=True))
        return deltas

    def finish(self) -> list[Delta]:
        return self._deltas(self._utf8.decode(b"", final=True))

    def _switch(self, channel: Channel) -> list[Delta]:
        if channel == self._channel:
            return []
        deltas = self.finish()
        self._channel = channel
        return deltas

    def _deltas(self, text: str) -> list[Delta]:
        return [Delta(self._channel, text)] if text else []


class _StopStrings:
    """Ends the content before the first stop string to be complete; reasoning passes untouched.

    First means the earliest end, then the earliest start: the only order that does not depend on
    how much text arrives at once.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, deltas: list[Delta]) -> list[Delta]:
        out: list[Delta] = []
        for delta in deltas:
            if self.found is None:
                out += self._push(delta)
        return out

    def finish(self) -> list[Delta]:
        held, self._held = self._held, ""
        return [Delta("content", held)] if held else []

    def _push(self, delta: Delta) -> list[Delta]:
        if delta.channel == "reasoning":
            return [*self.finish(), delta]
        text = self._held + delta.text
        ends = [(text.find(stop) + len(stop), stop) for stop in self._stop if stop in text]
        if ends:
            end, self.found = min(ends, key=lambda found: (found[0], -len(found[1])))
            certain, self._held = text[: end - len(self.found)], ""
        else:
            num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
            certain, self._held = text[: len(text) - num_held], text[len(text) - num_held :]
        return [Delta("content", certain)] if certain else []


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` begin `stop`, less than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

"""Token ids to pieces: whole characters of text, and the markers an answer is structured by.

The first stage of `stream.py`. A marker is a control token; its name spelt with ordinary tokens is
text here. Knows nothing of what the markers mean.
"""

import codecs
from dataclasses import dataclass

from hybrid_k2.text.markers import THINK_BEGIN, THINK_END, TOOL_MARKERS
from hybrid_k2.text.tokenizer import Tokenizer

_SHOWN = frozenset((THINK_BEGIN, THINK_END, *TOOL_MARKERS))


@dataclass(frozen=True, slots=True)
class Piece:
    """Non-empty text, or, where is_marker, the name of a control token."""

    text: str
    is_marker: bool = False


class Pieces:
    """Reads one answer; control tokens that structure no answer vanish."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> list[Piece]:
        """Returns what the token completed; TokenizerError for an id beyond the vocabulary."""
        name = self._tokenizer.control_text(token_id)
        if name is None:
            return _text(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
        return [*self.finish(), Piece(name, is_marker=True)] if name in _SHOWN else []

    def finish(self) -> list[Piece]:
        """Returns a character that was begun and not completed, as U+FFFD."""
        return _text(self._utf8.decode(b"", final=True))


def _text(text: str) -> list[Piece]:
    return [Piece(text)] if text else []

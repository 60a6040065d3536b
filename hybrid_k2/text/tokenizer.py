"""K2's tokenizer: text to ids, ids to bytes, over a vocabulary read by `vocabulary.py`.

The tiktoken library merges the bytes; this file owns K2's splitting rule and the wall between text
and control tokens: control tokens are not among the merge ranks, so no text can encode to one,
whatever it spells. Ids are never hard-coded (the demo vocabulary has others than K2's). Knows
nothing of chats or of the engine.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tiktoken

from hybrid_k2.errors import ContextLengthError, TokenizerError
from hybrid_k2.text.markers import END_TOKENS
from hybrid_k2.text.vocabulary import Vocabulary, vocabulary_from_directory, vocabulary_from_gguf

SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# K2's own code cuts long text at these lengths; a cut is a token boundary, so it shows in the ids.
# White space is what str.isspace says, which for every code point is what Python's \s says.
_PIECE_CHARS = 400_000
_RUN_CHARS = 25_000
_RUNS = re.compile(r"\s+|\S+")


class Tokenizer:
    """Text to ids (never a control id) and ids to bytes; immutable, so threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._control_ids = dict(vocabulary.control)
        self._control_text = dict(vocabulary.unused)
        self._control_text.update((i, name) for name, i in vocabulary.control.items())
        self._bytes_of_id = [b""] * vocabulary.size
        for token, token_id in vocabulary.tokens():
            self._bytes_of_id[token_id] = token
        self._encoding = tiktoken.Encoding(
            "kimi-k2",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=dict(vocabulary.ranks),
            special_tokens={},
        )
        self.vocab_size = vocabulary.size
        self.max_token_bytes = max(map(len, vocabulary.ranks))
        self.chat_template = vocabulary.chat_template
        self.eos_ids = tuple(self._control_ids[t] for t in END_TOKENS if t in self._control_ids)

    @classmethod
    def from_directory(cls, path: Path | str) -> "Tokenizer":
        """Reads tiktoken.model and tokenizer_config.json in `path`; raises TokenizerError."""
        return cls(vocabulary_from_directory(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Reads the tokenizer.* keys of a GGUF file's metadata; raises TokenizerError."""
        return cls(vocabulary_from_gguf(metadata))

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Returns the ids of `text`; a control token spelt in it stays text.

        Lone surrogates become U+FFFD. Raises ContextLengthError as append_to does.
        """
        ids: list[int] = []
        self.append_to(ids, text, max_tokens)
        return ids

    def append_to(self, ids: list[int], text: str, max_tokens: int | None = None) -> None:
        """Appends the ids of `text`; ContextLengthError once `ids` must outgrow max_tokens.

        That is known from the text's size before any encoding, or else after a few pieces, so the
        time is bounded by max_tokens and not by what a user sends. The error's number of tokens is
        then a lower bound.
        """
        _check_length(len(ids) + self.min_tokens(len(text)), max_tokens)
        for piece in _cut(text):
            ids.extend(self._encoding.encode_ordinary(piece))
            _check_length(len(ids), max_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`: control tokens by name, bytes that are not UTF-8 as U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of one token, of a control token its name.

        Raises TokenizerError for an id beyond the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"token id {token_id} is outside the tokenizer's {self.vocab_size} ids; "
                "model and tokenizer do not belong together"
            )
        return self._bytes_of_id[token_id]

    def special_id(self, name: str) -> int | None:
        """Returns the id of the control token `name`, or None where the vocabulary has none."""
        return self._control_ids.get(name)

    def control_text(self, token_id: int) -> str | None:
        """Returns the name of a control, reserved or unused token, or None for a token of text."""
        return self._control_text.get(token_id)

    @property
    def control_ids(self) -> Collection[int]:
        """The ids that are no text: control, reserved and unused tokens."""
        return self._control_text.keys()

    def min_tokens(self, num_bytes: int) -> int:
        """Returns the fewest tokens that any text of `num_bytes` UTF-8 bytes can have."""
        return -(-num_bytes // self.max_token_bytes)


def _check_length(num_tokens: int, max_tokens: int | None) -> None:
    if max_tokens is not None and num_tokens > max_tokens:
        raise ContextLengthError(num_tokens, max_tokens)


def _cut(text: str) -> Iterator[str]:
    """Yields what K2 encodes one by one: short pieces without long runs of (non-)white space."""
    for start in range(0, len(text), _PIECE_CHARS):
        piece = text[start : start + _PIECE_CHARS]
        begin = 0
        for run in _RUNS.finditer(piece):
            for cut in range(run.start() + _RUN_CHARS, run.end(), _RUN_CHARS):
                yield piece[begin:cut]
                begin = cut
        yield piece[begin:]

"""Caches of finished sequences, kept so that what a new prompt shares is not computed again.

Owns the kept caches and their byte budget. Knows what a cache can do (`length`, `num_bytes`,
`truncate`, `copy`), not what is in it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(eq=False, slots=True)
class _Entry:
    token_ids: np.ndarray  # int64 [cache.length]
    cache: Any


class PrefixCache:
    """Caches within `max_bytes`, and the newest in any case, so that a chat finds itself again."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # least recently used first

    @property
    def num_bytes(self) -> int:
        return sum(entry.cache.num_bytes for entry in self._entries)

    def take(self, token_ids: list[int]) -> Any | None:
        """Hands over a cache of the longest kept prefix of token_ids; None where nothing matches.

        It never holds the last token, whose logits are still wanted.
        """
        wanted = np.asarray(token_ids[:-1], dtype=np.int64)
        lengths = [_common_length(entry.token_ids, wanted) for entry in self._entries]
        length = max(lengths, default=0)
        if length == 0:
            return None
        # Of equally good ones the most recently used; it is the likelier to be this conversation's
        # own.
        entry = self._entries.pop(len(lengths) - 1 - lengths[::-1].index(length))
        if len(entry.token_ids) - length > length:
            # A short common start (a shared system prompt) is not worth another conversation's
            # whole history.
            self._entries.append(entry)
            return entry.cache.copy(length)
        entry.cache.truncate(length)
        return entry.cache

    def put(self, token_ids: list[int], cache: Any) -> None:
        """Keeps a cache that holds exactly token_ids; the least recently used ones make room."""
        new = _Entry(np.asarray(token_ids, dtype=np.int64), cache)
        if len(token_ids) == 0:
            cache.release()
            return
        for entry in [entry for entry in self._entries if _is_prefix(entry, of=new)]:
            self._entries.remove(entry)
            entry.cache.release()
        if any(_is_prefix(new, of=entry) for entry in self._entries):
            new.cache.release()
        else:
            self._entries.append(new)
        while len(self._entries) > 1 and self.num_bytes > self._max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Gives the pages of the least recently used cache back; False where none is kept."""
        if not self._entries:
            return False
        self._entries.pop(0).cache.release()
        return True

    def clear(self) -> None:
        """Drops everything kept."""
        while self.drop_oldest():
            pass


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _is_prefix(entry: _Entry, *, of: _Entry) -> bool:
    return _common_length(entry.token_ids, of.token_ids) == len(entry.token_ids)

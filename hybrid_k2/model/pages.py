"""Which page of the KV cache belongs to whom: reference counts and the choice of free pages.

A page is room for PAGE_TOKENS tokens in every layer. Owns the numbers only; what lies in a page,
and on which device, is kv_cache.py's business. Without torch, so that the engine imports it fast.
"""

from collections.abc import Iterable

import numpy as np

PAGE_TOKENS = 64


class OutOfPages(Exception):
    """Fewer pages are free than were asked for; nothing was allocated. Never leaves the engine."""

    def __init__(self, num_wanted: int, num_free: int) -> None:
        super().__init__(f"{num_wanted} pages are wanted and {num_free} are free")
        self.num_missing = num_wanted - num_free


def pages_of(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class PageAllocator:
    """Reference counts of `num_pages` pages; one without owners is free."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_free = num_pages
        self.owners = np.zeros(num_pages, dtype=np.int32)

    def allocate(self, num_pages: int, after: int | None = None) -> list[int]:
        """Pages with one owner each; raises OutOfPages where not all can be had.

        They follow page `after` as long as those behind it are free, because consecutive pages are
        read without a copy.
        """
        if num_pages > self.num_free:
            raise OutOfPages(num_pages, self.num_free)
        page_ids: list[int] = []
        page_id = self.num_pages if after is None else after + 1
        while len(page_ids) < num_pages:
            if page_id >= self.num_pages or self.owners[page_id]:
                page_id = self._roomiest(num_pages - len(page_ids))
            self.owners[page_id] = 1
            page_ids.append(page_id)
            page_id += 1
        self.num_free -= num_pages
        return page_ids

    def share(self, page_ids: Iterable[int]) -> None:
        """Adds an owner to each."""
        for page_id in page_ids:
            self.owners[page_id] += 1

    def free(self, page_ids: Iterable[int]) -> None:
        """Takes an owner from each."""
        for page_id in page_ids:
            self.owners[page_id] -= 1
            self.num_free += int(self.owners[page_id] == 0)

    def is_shared(self, page_id: int) -> bool:
        """True where somebody else reads the page, so that it must not be written to."""
        return bool(self.owners[page_id] > 1)

    def _roomiest(self, num_pages: int) -> int:
        """Where to begin in the longest run of free pages: in its middle where a used page comes
        before it, so that both the sequence there and the new one have room to grow.
        """
        edges = np.flatnonzero(np.diff(self.owners == 0, prepend=False, append=False))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = lengths.argmax()
        start, room = int(starts[longest]), int(lengths[longest])
        return start + max(0, room - num_pages) // 2 if start else start

"""The latent KV cache in pages: per layer and token the normalised latent and the rotated k_pe,
side by side.

A pool owns the memory, one tensor a layer; a sequence's cache is a list of its pages. Pages of a
common prefix are shared, and one that is written to is copied first. Knows nothing of attention,
nor of who shares what and why.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from hybrid_k2.model.pages import PAGE_TOKENS, PageAllocator, pages_of

_SCALE_COLUMNS = {torch.int8: 16}  # behind a row of 8 bits: SCALE_BYTES of kernels/pages.py


class PagePool(PageAllocator):
    """pages[layer_idx]: [num_pages, PAGE_TOKENS, columns]; page p is the same tokens in each."""

    def __init__(
        self,
        placements: Sequence[tuple[torch.device, torch.dtype]],
        latent_dim: int,
        num_pages: int,
    ) -> None:
        """placements: device and dtype of each layer's pages.  latent_dim: numbers per token, which
        have their scales behind them where the dtype is int8.

        On the CPU a page that was never written to takes no memory.
        """
        super().__init__(num_pages)
        self.pages = [
            torch.empty(
                *(num_pages, PAGE_TOKENS, latent_dim + _SCALE_COLUMNS.get(dtype, 0)),
                dtype=dtype,
                device=device,
            )
            for device, dtype in placements
        ]
        self.rows = [pages.flatten(0, 1) for pages in self.pages]  # row 64 p + i: token i of page p
        self._bytes = [pages.view(torch.uint8).flatten(1) for pages in self.pages]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return sum(pages.shape[1] for pages in self._bytes)

    def new_cache(self) -> "LatentCache":
        """An empty sequence's."""
        return LatentCache(self)

    def read_pages(self, page_ids: Sequence[int]) -> torch.Tensor:
        """The bytes of pages, one layer after another: uint8 [n, page_bytes] on the CPU."""
        data = torch.empty(len(page_ids), self.page_bytes, dtype=torch.uint8)
        for page, row in self._parts(page_ids, data):
            row.copy_(page)
        return data

    def write_pages(self, page_ids: Sequence[int], rows: Iterable[torch.Tensor]) -> None:
        """Fills pages with what read_pages gave.  rows: a page's bytes each, uint8 [page_bytes]."""
        for page, row in self._parts(page_ids, rows):
            page.copy_(row)

    def _parts(
        self, page_ids: Sequence[int], rows: Iterable[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each layer's bytes of each page, and their place in the page's row. Copied one by one:
        indexing with a list of pages copies a number at a time, at 0.7 GB/s.
        """
        sizes = [pages.shape[1] for pages in self._bytes]
        for page_id, row in zip(page_ids, rows, strict=True):
            for pages, part in zip(self._bytes, row.split(sizes), strict=True):
                yield pages[page_id], part

    def copy_page(self, source: int, destination: int) -> None:
        """Copies a page in every layer."""
        for pages in self.pages:
            pages[destination] = pages[source]


class LatentCache:
    """Tokens [0, length) of one sequence, in `page_ids`. Pages may change places between steps."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.length = 0
        self.page_ids: list[int] = []
        self._runs: list[tuple[int, int]] | None = None  # (first page, pages) of consecutive ones

    def reserve(self, num_tokens: int) -> None:
        """Makes room for `num_tokens` tokens in all, and those from `length` on writable.

        Raises OutOfPages, and then has changed nothing.
        """
        tail = self.length // PAGE_TOKENS
        copies = tail < len(self.page_ids) and self.pool.is_shared(self.page_ids[tail])
        wanted = max(0, pages_of(num_tokens) - len(self.page_ids))
        if not wanted and not copies:
            return
        last = self.page_ids[-1] if self.page_ids and not copies else None
        new = self.pool.allocate(copies + wanted, after=last)
        if copies:
            shared = self.page_ids[tail]
            self.pool.copy_page(shared, new[0])
            self.pool.free([shared])
            self.page_ids.pop()
        self.page_ids += new
        self._runs = None

    def adopt(self, page_ids: Sequence[int], num_tokens: int) -> None:
        """Takes the first `num_tokens` tokens from pages that it shares from now on."""
        self.pool.share(page_ids)
        self.pool.free(self.page_ids)
        self.page_ids = list(page_ids)
        self.length = num_tokens
        self._runs = None

    def write(self, layer_idx: int, start: int, latents: torch.Tensor) -> None:
        """Stores tokens [start, start + T) of a layer, for which room was reserved.

        latents: [T, columns] on the layer's device; float32, or already of the pages' dtype.
        """
        first = 0
        for rows in self._pieces(layer_idx, start, start + latents.shape[0]):
            rows.copy_(latents[first : first + rows.shape[0]])
            first += rows.shape[0]

    def read(self, layer_idx: int, num_tokens: int) -> list[torch.Tensor]:
        """Tokens [0, num_tokens) of a layer as views, [n, columns] for each run of consecutive
        pages.
        """
        return list(self._pieces(layer_idx, 0, num_tokens))

    def replace_page(self, page_idx: int, page_id: int) -> None:
        """Shares another page of the same contents instead of this one."""
        self.pool.share([page_id])
        self.pool.free([self.page_ids[page_idx]])
        self.page_ids[page_idx] = page_id
        self._runs = None

    def truncate(self, num_tokens: int) -> None:
        """Forgets every token from `num_tokens` on, and pages without any."""
        self.length = min(self.length, num_tokens)
        num_pages = pages_of(self.length)
        if num_pages < len(self.page_ids):
            self.pool.free(self.page_ids[num_pages:])
            del self.page_ids[num_pages:]
            self._runs = None

    def release(self) -> None:
        """Gives all pages back; the cache is empty then."""
        self.truncate(0)

    def _pieces(self, layer_idx: int, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Rows of tokens [start, stop), a run of pages at a time."""
        if self._runs is None:
            self._runs = _consecutive(self.page_ids)
        first = 0  # the run's first token
        for page_id, num_pages in self._runs:
            last = first + num_pages * PAGE_TOKENS
            if first < stop and last > start:
                offset = page_id * PAGE_TOKENS - first  # from the token's number to its row
                begin, end = offset + max(first, start), offset + min(last, stop)
                yield self.pool.rows[layer_idx][begin:end]
            first = last


def _consecutive(page_ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first page, number of pages) of each run."""
    runs: list[tuple[int, int]] = []
    for page_id in page_ids:
        if runs and page_id == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page_id, 1))
    return runs

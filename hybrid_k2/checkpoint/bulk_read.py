"""Stored bytes into memory as fast as the disk gives them: large reads by several threads.

Owns O_DIRECT and its alignment, and the waiting for a mapping's pages. Knows files and arrays; who
owns the memory and what the bytes mean is the caller's business.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hybrid_k2.errors import ModelFileError

log = logging.getLogger(__name__)

PAGE_BYTES = 4096  # what O_DIRECT wants file offset, length and address to be multiples of
CHUNK_BYTES = 8 << 20  # one read; also the wait between two reports of progress
NUM_THREADS = 8  # an NVMe disk needs about 64 MiB on their way for its full rate
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap does not name it

Read = Callable[[], int]  # does its part, returns the bytes of it


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie: `num_bytes` from `offset` of the file at `path`."""

    path: Path
    offset: int
    num_bytes: int

    @property
    def margin(self) -> int:
        """Bytes of the first page that come before the extent."""
        return self.offset % PAGE_BYTES

    @property
    def paged_bytes(self) -> int:
        """Bytes of the whole pages of the file that hold the extent; 0 for an empty one."""
        return (
            -(-(self.margin + self.num_bytes) // PAGE_BYTES) * PAGE_BYTES if self.num_bytes else 0
        )


class BulkReader:
    """Threads that read, and the files they read from; use it as a context manager.

    `report` is called with the number of bytes after each chunk, in the calling thread and in the
    order of the file. What it raises, and Ctrl-C, ends reading; the context is left when the chunks
    under way are done, and no thread writes to the destination after that.
    """

    def __init__(self, report: Callable[[int], None] = lambda num_bytes: None) -> None:
        self._report = report
        self._threads = ThreadPoolExecutor(NUM_THREADS, "hybrid-k2-read")
        self._files: dict[Path, _File] = {}
        self._bytes: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file.descriptor)
        for what, num_bytes in self._bytes.items():
            rate = num_bytes / max(self._seconds[what], 1e-9) / 1e9
            log.info("%s: %.1f GB at %.2f GB/s", what, num_bytes / 1e9, rate)

    def read(self, parts: Sequence[tuple[Extent, np.ndarray]]) -> None:
        """Reads extents into memory.

        parts: each extent with uint8 [extent.paged_bytes] at a page's start. The whole pages that
        hold the extent are read, so the disk can write straight into them; its own bytes begin at
        `extent.margin`. Raises ModelFileError with file and offset where the file ends too early
        or cannot be read.
        """
        reads = (read for extent, pages in parts for read in self._reads(extent, pages))
        self._run("weights read into RAM", reads)

    def populate(self, parts: Sequence[tuple[Extent, np.ndarray]]) -> None:
        """Waits until the pages of mapped files are in memory.

        parts: each extent with uint8 [num_bytes] where it is mapped. Raises ModelFileError as
        `read` does, where touching the bytes would kill the process.
        """
        for extent, _ in parts:
            _check_size(extent)
        reads = (read for extent, data in parts for read in _populations(extent, data))
        self._run("weights mapped", reads)

    def _run(self, what: str, reads: Iterable[Read]) -> None:
        """Runs all, a bounded number of them at a time, and reports in order."""
        pending: deque[Future[int]] = deque()
        started = time.perf_counter()

        def finish_first() -> None:
            num_bytes = pending.popleft().result()
            self._bytes[what] += num_bytes
            self._report(num_bytes)

        try:
            for read in reads:
                pending.append(self._threads.submit(read))
                if len(pending) >= 2 * NUM_THREADS:
                    finish_first()
            while pending:
                finish_first()
        finally:
            self._seconds[what] += time.perf_counter() - started

    def _reads(self, extent: Extent, pages: np.ndarray) -> Iterator[Read]:
        if not extent.num_bytes:
            return
        assert len(pages) == extent.paged_bytes and pages.ctypes.data % PAGE_BYTES == 0
        file = self._open(extent)
        end = extent.margin + extent.num_bytes
        for start in range(0, end, CHUNK_BYTES):
            chunk = pages[start : start + CHUNK_BYTES]
            needed = min(end - start, CHUNK_BYTES)
            own_bytes = needed - (extent.margin if start == 0 else 0)
            position = extent.offset - extent.margin + start

            def read(chunk=chunk, position=position, needed=needed, own_bytes=own_bytes) -> int:
                file.read(chunk, position, needed)
                return own_bytes

            yield read

    def _open(self, extent: Extent) -> _File:
        if extent.path not in self._files:
            file = _open_file(extent.path)
            if not file.is_direct and all(other.is_direct for other in self._files.values()):
                log.warning(
                    "%s: its file system refuses O_DIRECT; reading through the page cache, which "
                    "holds a second copy of the weights as long as there is room",
                    extent.path,
                )
            self._files[extent.path] = file
        return self._files[extent.path]


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    descriptor: int
    is_direct: bool

    def read(self, pages: np.ndarray, offset: int, needed: int) -> None:
        """Fills the first `needed` bytes of whole pages, and the rest where the file has it."""
        done = 0
        while done < needed:
            try:
                count = os.preadv(self.descriptor, [memoryview(pages)[done:]], offset + done)
            except OSError as error:
                raise ModelFileError(
                    f"{self.path} cannot be read at byte {offset + done}: {error.strerror}; check "
                    "the disk, or copy the file to another"
                ) from None
            if done + count >= needed:
                return
            if count < PAGE_BYTES:
                size = os.fstat(self.descriptor).st_size
                raise _cut_short(self.path, size, offset + needed)
            done += count // PAGE_BYTES * PAGE_BYTES  # O_DIRECT goes on at a page's start


def _open_file(path: Path) -> _File:
    """For O_DIRECT where a trial read shows that it works, else through the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            os.preadv(descriptor, [_trial_page()], 0)
            return _File(path, descriptor, is_direct=True)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise _unreadable(path, error) from None
    try:
        return _File(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), is_direct=False)
    except OSError as error:
        raise _unreadable(path, error) from None


def _trial_page() -> memoryview:
    """A page of memory at a page's start."""
    spare = np.empty(2 * PAGE_BYTES, np.uint8)
    start = -spare.ctypes.data % PAGE_BYTES
    return memoryview(spare)[start : start + PAGE_BYTES]


def _check_size(extent: Extent) -> None:
    """Raises ModelFileError where the file no longer reaches to the extent's end."""
    try:
        size = os.stat(extent.path).st_size
    except OSError as error:
        raise _unreadable(extent.path, error) from None
    end = extent.offset + extent.num_bytes
    if size < end:
        raise _cut_short(extent.path, size, end)


def _populations(extent: Extent, data: np.ndarray) -> Iterator[Read]:
    for start in range(0, len(data), CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        yield lambda chunk=chunk, offset=extent.offset + start: _populate(
            chunk, extent.path, offset
        )


def _populate(chunk: np.ndarray, path: Path, offset: int) -> int:
    """One system call for all pages of a chunk; a byte of each where the kernel lacks it."""
    margin = chunk.ctypes.data % PAGE_BYTES
    error = _madvise(chunk.ctypes.data - margin, margin + len(chunk), _MADV_POPULATE_READ)
    if error == errno.EINVAL:
        chunk[::PAGE_BYTES].sum()
        chunk[-1:].sum()  # the last page, where the chunk does not begin with one
    elif error:
        raise ModelFileError(
            f"{path} cannot be read between bytes {offset} and {offset + len(chunk)}: "
            f"{os.strerror(error)}; was it cut short or does the disk fail?"
        )
    return len(chunk)


def _madvise(address: int, num_bytes: int, advice: int) -> int:
    """The errno, 0 for success. Unlike mmap.madvise it takes any memory and lets others run."""
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return ctypes.get_errno() if call(address, num_bytes, advice) else 0


def _cut_short(path: Path, size: int, end: int) -> ModelFileError:
    return ModelFileError(
        f"{path} ends at byte {size}, but weights lie up to byte {end}: it became shorter after it "
        "was opened; is it still being written?"
    )


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read: {error.strerror}; check the path")

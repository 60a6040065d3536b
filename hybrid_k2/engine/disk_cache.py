"""Pages of the KV cache on disk: they survive a restart, and what was computed is only read again.

Owns a model's folder of page files: which there are, what is deleted for the quota, and a thread
that writes without making a request wait. A file that is damaged, foreign or gone is skipped. What
is in a file is page_file.py's business, which pages are wanted prefix_cache.py's.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hybrid_k2.engine.page_file import (
    PageFile,
    PageFileError,
    chain_digests,
    file_bytes,
    read_header,
    read_pages,
    write_page_file,
)
from hybrid_k2.engine.stats import TierStats
from hybrid_k2.errors import BadInputError
from hybrid_k2.model.pages import PAGE_TOKENS

log = logging.getLogger(__name__)

_FORMAT = 1
_RUN_BYTES = 256 << 20  # of pages in a file: few files for a long prefix, and soon copied out
_BLOCK_BYTES = 8 << 20  # of pages that a thread reads at once
_MAX_READ_THREADS = 8
_MAX_QUEUED = 16
_ABANDONED_S = 600  # a temporary file that nobody has written to for so long is nobody's
_FOLDER = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"[0-9a-f]{32}\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.\d+\.tmp")


@dataclass(frozen=True, slots=True)
class Run:
    """Pages [first, first + num_pages) of a prefix in a file. chain: a digest of each page."""

    name: str
    first: int
    num_pages: int
    chain: list[bytes]


@dataclass(eq=False, slots=True)
class _Job:
    """Pages to be written, which have it as an owner until it has ended."""

    ids: np.ndarray
    page_ids: list[int]
    salt: str
    is_given_up: bool = False


class DiskCache:
    """One model's folder in a cache directory, which other models and processes may share.

    The engine's thread calls everything here; another one writes.
    """

    def __init__(
        self,
        directory: Path,
        quota_bytes: int,
        identity: Mapping[str, Any],
        pool: Any,
        *,
        num_threads: int = _MAX_READ_THREADS,
    ) -> None:
        """directory: created, for its owner only.  quota_bytes: of all models' files in it.

        identity: what a page's bytes depend on besides token ids; a file of another one is never
        read.  pool: a model.kv_cache.PagePool.  num_threads: cores there are to read with: eight
        threads on two take 1.0 s for 8K tokens of K2, two 0.7 s. Raises BadInputError for a
        directory that cannot be used.
        """
        self._root = directory
        self._quota_bytes = quota_bytes
        self._pool = pool
        about = {"format": _FORMAT, "page_bytes": pool.page_bytes, **identity}
        self._identity = json.dumps(about, sort_keys=True)
        self._folder = directory / hashlib.sha256(self._identity.encode()).hexdigest()[:32]
        prepare_directory(self._folder)
        self._remove_abandoned()
        self._names = {entry.name for entry in _entries(self._folder, _FILE)}
        self._headers: dict[str, PageFile] = {}  # of those that were looked into
        self._queue: deque[_Job] = deque()
        self._current: _Job | None = None
        self._finished: deque[_Job] = deque()  # their pages are still to be given back
        self._written_bytes = 0
        self._is_closing = False
        self._has_warned = False
        self._changed = threading.Condition()  # guards all of the above, never held for long
        self._copying = threading.Lock()  # held while pages are copied out
        self._thread: threading.Thread | None = None
        self._read_threads = min(_MAX_READ_THREADS, num_threads)

    def find(self, ids: np.ndarray, first: int, salt: str) -> Run | None:
        """The run that holds page `first` of these tokens (int32) and what follows, as far as it
        agrees; None where no file does.
        """
        return self._find(ids, first, self._chain(ids, salt))

    def load(self, run: Run, page_ids: list[int]) -> int:
        """Fills pages with a run's first ones; returns how many are good.

        A file with one that is not is skipped from then on.
        """
        header = self._header(run.name)
        if header is None:
            return 0
        block = max(1, _BLOCK_BYTES // self._pool.page_bytes)
        starts = range(0, len(page_ids), block)
        path, num_good = self._folder / run.name, 0
        try:
            with (
                open(path, "rb", buffering=0) as file,
                ThreadPoolExecutor(
                    self._read_threads, "hybrid-k2-cache-read", _use_one_core
                ) as threads,
            ):
                parts = [page_ids[start : start + block] for start in starts]
                load = lambda start, part: self._load(file, header, run, start, part)  # noqa: E731
                for start, count in zip(starts, threads.map(load, starts, parts), strict=True):
                    num_good += count if num_good == start else 0
            os.utime(path)  # the quota spares what was used last
        except OSError as error:
            self._skip(run.name, error)
            return 0
        if num_good < len(page_ids):
            self._skip(run.name, PageFileError("a page differs from its digest"))
        return num_good

    def save(self, ids: np.ndarray, page_ids: list[int], salt: str, *, wait: bool = False) -> None:
        """Queues the pages of a prefix; nobody may write to them until collect() frees them.

        ids: int32 [64 * len(page_ids)].  wait: False drops them where too much is queued already.
        """
        with self._changed:
            if self._is_closing or (len(self._queue) >= _MAX_QUEUED and not wait):
                return
            self._pool.share(page_ids)
            self._queue.append(_Job(ids, list(page_ids), salt))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_queued, name="hybrid-k2-cache-write", daemon=True
                )
                self._thread.start()

    def collect(self) -> None:
        """Gives the pages back that were written, or could not be."""
        while self._finished:
            self._pool.free(self._finished.popleft().page_ids)

    def give_up(self) -> bool:
        """Gives all pages back, written or not; False where there were none."""
        with self._changed:
            jobs = [*self._queue, *self._finished]
            if self._current is not None and not self._current.is_given_up:
                jobs.append(self._current)
            self._queue.clear()
            self._finished.clear()
            for job in jobs:
                job.is_given_up = True
        with self._copying:
            for job in jobs:
                self._pool.free(job.page_ids)
        return bool(jobs)

    def flush(self) -> int:
        """Waits for what is queued; returns the bytes written since the last flush."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and self._current is None)
            num_bytes, self._written_bytes = self._written_bytes, 0
        self.collect()
        return num_bytes

    def clear(self) -> None:
        """Deletes this model's files."""
        self.give_up()
        self.flush()
        for entry in _entries(self._folder, _FILE):
            with suppress(OSError):
                os.unlink(entry.path)
        with self._changed:
            self._names.clear()
            self._headers.clear()

    def close(self) -> None:
        """Ends the thread once the file that it writes is whole. Closing twice is allowed."""
        self.give_up()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def stats(self, hit_tokens: int) -> TierStats:
        """Of this model's files."""
        num_bytes = sum(size for _, size, _ in _sizes(self._folder))
        return TierStats(
            name="disk",
            pages_total=self._quota_bytes // self._pool.page_bytes,
            pages_cached=num_bytes // self._pool.page_bytes,
            bytes_total=self._quota_bytes,
            bytes_used=num_bytes,
            hit_tokens=hit_tokens,
        )

    def _chain(self, ids: np.ndarray, salt: str) -> list[bytes]:
        return chain_digests(ids, f"{self._identity}\0{salt}")

    def _find(self, ids: np.ndarray, first: int, chain: list[bytes]) -> Run | None:
        if first >= len(chain):
            return None
        for file_first in range(first, -1, -1):  # a file is named by its first page
            name = _name(chain[file_first])
            header = self._header(name) if name in self._names else None
            if header is None or header.first_page != file_first:
                continue
            length = min(len(header.ids), len(chain) * PAGE_TOKENS)
            differs = header.ids[:length] != ids[:length]
            end = (int(differs.argmax()) if differs.any() else length) // PAGE_TOKENS
            if end > first:
                return Run(name, first, end - first, chain[first:end])
        return None

    def _header(self, name: str) -> PageFile | None:
        """Of a file that there is; None where it is gone by now or cannot be believed."""
        if name not in self._headers:
            try:
                path = self._folder / name
                self._headers[name] = read_header(path, self._identity, self._pool.page_bytes)
            except (OSError, PageFileError) as error:
                self._skip(name, error)
        return self._headers.get(name)

    def _load(
        self, file: BinaryIO, header: PageFile, run: Run, start: int, page_ids: list[int]
    ) -> int:
        """Fills a block of pages, as far as they are good; returns how many are."""
        import torch

        data = torch.empty(len(page_ids), self._pool.page_bytes, dtype=torch.uint8)
        chain = run.chain[start : start + len(page_ids)]
        num_good = read_pages(file, header, run.first + start, chain, data.numpy())
        if num_good:
            self._pool.write_pages(page_ids[:num_good], data[:num_good])
        return num_good

    def _write_queued(self) -> None:
        """The thread: writes what is queued until close()."""
        _use_one_core()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._is_closing)
                if self._is_closing:
                    return
                job = self._current = self._queue.popleft()
            try:
                self._write(job)
                self._has_warned = False
            except Exception as error:
                if not self._has_warned:  # a full disk would say so at every request
                    log.warning("KV pages cannot be written to %s: %s", self._folder, error)
                self._has_warned = True
            with self._changed:
                self._current = None
                if not job.is_given_up:
                    self._finished.append(job)
                self._changed.notify_all()

    def _write(self, job: _Job) -> None:
        """Writes the pages of a job that no file has yet."""
        chain = self._chain(job.ids, job.salt)
        run_pages = max(1, _RUN_BYTES // self._pool.page_bytes)
        first = 0
        while first < len(chain):
            found = self._find(job.ids, first, chain)
            if found is not None:
                first += found.num_pages
                continue
            last = min(first + run_pages, len(chain))
            with self._copying:
                if job.is_given_up:
                    return
                data = self._pool.read_pages(job.page_ids[first:last]).numpy()
            num_bytes = file_bytes(
                self._identity, self._pool.page_bytes, first, num_pages=last - first
            )
            self._make_room(num_bytes)
            name, ids = _name(chain[first]), job.ids[: last * PAGE_TOKENS]
            write_page_file(
                self._folder / name, self._identity, first, ids, chain[first:last], data
            )
            with self._changed:
                self._headers.pop(name, None)
                self._names.add(name)
                self._written_bytes += num_bytes
            first = last

    def _make_room(self, num_bytes: int) -> None:
        """Deletes the files used longest ago, of any model, until so many bytes fit the quota."""
        if num_bytes > self._quota_bytes:
            raise OSError(f"a file of {num_bytes} bytes exceeds the quota of {self._quota_bytes}")
        folders = [Path(entry.path) for entry in _entries(self._root, _FOLDER)]
        files = sorted(file for folder in folders for file in _sizes(folder))
        total_bytes = num_bytes + sum(size for _, size, _ in files)
        for _, size, path in files:
            if total_bytes <= self._quota_bytes:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            if path.parent == self._folder:
                self._forget(path.name)
            total_bytes -= size

    def _remove_abandoned(self) -> None:
        """Deletes what a killed process left half written."""
        for entry in _entries(self._folder, _TEMPORARY):
            with suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                    os.unlink(entry.path)

    def _skip(self, name: str, error: Exception) -> None:
        if not isinstance(error, FileNotFoundError):  # which only made room for others
            log.warning("cache file %s is skipped: %s", self._folder / name, error)
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self._changed:
            self._names.discard(name)
            self._headers.pop(name, None)


def prepare_directory(directory: Path) -> None:
    """Makes a directory that only its owner reads; BadInputError where none can be had there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("no permission to read and write")
    except OSError as error:
        raise BadInputError(
            f"cache directory {directory}: {error.strerror or error}; give one that can be "
            "written to, or none"
        ) from error


def _use_one_core() -> None:
    """Keeps torch from starting a team of spinning threads for this one, beside the kernels'."""
    import torch

    torch.set_num_threads(1)


def _name(link: bytes) -> str:
    return f"{link[:16].hex()}.safetensors"


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """Folders or files of ours by name; no link, and nothing whose opening would wait."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_plain = entry.is_dir if pattern is _FOLDER else entry.is_file
            if pattern.fullmatch(entry.name) and is_plain(follow_symlinks=False):
                yield entry


def _sizes(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of each page file."""
    for entry in _entries(folder, _FILE):
        with suppress(FileNotFoundError):
            stat = entry.stat()
            yield stat.st_mtime, stat.st_size, Path(entry.path)

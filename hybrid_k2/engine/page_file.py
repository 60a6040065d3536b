"""A file of KV pages: a run of pages that follow each other, with what proves whose they are.

It is a safetensors file of `token_ids` (int32, every token up to the run's end) and `pages` (uint8
[n, page_bytes]), whose metadata names what the bytes depend on and has a digest of each page over
its bytes and its tokens. Nothing that a file says is believed unless all of it agrees. Read without
mapping it, because a damaged disk would kill a process that maps.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hybrid_k2.model.pages import PAGE_TOKENS

_MAX_HEADER_BYTES = 8 << 20


class PageFileError(Exception):
    """A file that cannot be believed, and why."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file's header. ids: int32, every token up to the end of its last page."""

    first_page: int
    ids: np.ndarray
    digests: list[bytes]
    pages_offset: int


def chain_digests(ids: np.ndarray, seed: str) -> list[bytes]:
    """A digest for each whole page of `ids` (int32): of the seed, its tokens and all before it."""
    digest = hashlib.sha256(seed.encode()).digest()
    chain = []
    for first in range(0, len(ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        digest = hashlib.sha256(digest + ids[first : first + PAGE_TOKENS].tobytes()).digest()
        chain.append(digest)
    return chain


def read_header(path: Path, identity: str, page_bytes: int) -> PageFile:
    """Reads what comes before the pages; PageFileError for another identity or any other flaw."""
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
            raise PageFileError("it does not begin as a safetensors file")
        try:
            header = json.loads(file.read(header_bytes))
            about = header["__metadata__"]
            found, first_page = about["identity"], int(about["first_page"])
            digests = [bytes.fromhex(digest) for digest in about["digests"].split()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PageFileError("its header is not that of KV pages") from error
        if found != identity:
            raise PageFileError("it belongs to another model")
        num_ids = (first_page + len(digests)) * PAGE_TOKENS
        if first_page < 0 or header != _header(identity, page_bytes, first_page, digests):
            raise PageFileError("its header is not that of KV pages")
        pages_offset = 8 + header_bytes + 4 * num_ids
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != pages_offset + len(digests) * page_bytes:
            raise PageFileError(f"it has {num_bytes} bytes, not those that its header tells of")
        ids = np.frombuffer(file.read(4 * num_ids), dtype=np.int32)
        return PageFile(first_page, ids, digests, pages_offset)


def read_pages(
    file: BinaryIO, header: PageFile, first_page: int, chain: list[bytes], data: np.ndarray
) -> int:
    """Fills data (uint8 [n, page_bytes]) from page `first_page` of the sequence on.

    chain: a digest for each of the n pages, from chain_digests. Returns how many pages are good
    before the first that differs from its digest.
    """
    unread = memoryview(data).cast("B")  # type: ignore[arg-type]
    first = first_page - header.first_page
    offset = header.pages_offset + first * data.shape[1]
    while len(unread):
        num_bytes = os.preadv(file.fileno(), [unread], offset)
        if num_bytes == 0:
            return 0
        unread, offset = unread[num_bytes:], offset + num_bytes
    for page_idx, (link, page) in enumerate(zip(chain, data, strict=True)):
        if _digest(link, page) != header.digests[first + page_idx]:
            return page_idx
    return len(data)


def write_page_file(
    path: Path,
    identity: str,
    first_page: int,
    ids: np.ndarray,
    chain: list[bytes],
    data: np.ndarray,
) -> None:
    """Writes pages [first_page, first_page + n) so that `path` is whole whenever it exists.

    ids: int32 [64 * (first_page + n)].  chain: n digests from chain_digests.  data: uint8 [n,
    page_bytes]. Without fsync: what a power failure loses differs from its digests.
    """
    digests = [_digest(link, page) for link, page in zip(chain, data, strict=True)]
    header = _header_bytes(identity, data.shape[1], first_page, digests)
    unfinished = temporary_path(path)
    try:
        with open(unfinished, "xb", opener=_owner_only) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(memoryview(ids))  # type: ignore[arg-type]
            file.write(memoryview(data))  # type: ignore[arg-type]
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def file_bytes(identity: str, page_bytes: int, first_page: int, num_pages: int) -> int:
    """The size of a file before it is written."""
    header = _header_bytes(identity, page_bytes, first_page, [bytes(32)] * num_pages)
    return 8 + len(header) + 4 * PAGE_TOKENS * (first_page + num_pages) + num_pages * page_bytes


def temporary_path(path: Path) -> Path:
    """Where this process writes `path` before it is whole."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp")


def _header(
    identity: str, page_bytes: int, first_page: int, digests: list[bytes]
) -> dict[str, Any]:
    """The safetensors header of a file with these pages."""
    num_pages = len(digests)
    num_ids = (first_page + num_pages) * PAGE_TOKENS
    pages_end = 4 * num_ids + num_pages * page_bytes
    return {
        "__metadata__": {
            "identity": identity,
            "first_page": str(first_page),
            "digests": " ".join(digest.hex() for digest in digests),
        },
        "token_ids": {"dtype": "I32", "shape": [num_ids], "data_offsets": [0, 4 * num_ids]},
        "pages": {
            "dtype": "U8",
            "shape": [num_pages, page_bytes],
            "data_offsets": [4 * num_ids, pages_end],
        },
    }


def _header_bytes(identity: str, page_bytes: int, first_page: int, digests: list[bytes]) -> bytes:
    header = json.dumps(_header(identity, page_bytes, first_page, digests)).encode()
    return header + b" " * (-len(header) % 8)


def _digest(link: bytes, page: np.ndarray) -> bytes:
    """Of a page's bytes and the digest of its tokens, so that neither fits another's."""
    digest = hashlib.sha256(link)
    digest.update(memoryview(page))  # type: ignore[arg-type]
    return digest.digest()


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

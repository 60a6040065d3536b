"""Large reads: any extent, both ways into memory, and every way in which a file can let us down."""

import errno
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid_k2.backends.weight_memory import allocate
from hybrid_k2.checkpoint import bulk_read
from hybrid_k2.checkpoint.bulk_read import PAGE_BYTES, BulkReader, Extent
from hybrid_k2.errors import ModelFileError

SIZE = 100_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random bytes that ends within a page, read in chunks of two pages."""
    monkeypatch.setattr(bulk_read, "CHUNK_BYTES", 2 * PAGE_BYTES)
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def read(*extents: Extent, report=lambda num_bytes: None) -> list[bytes]:
    """What `BulkReader.read` puts where each extent's own bytes begin."""
    parts = [(extent, allocate(extent.paged_bytes, "ram")) for extent in extents]
    with BulkReader(report) as reader:
        reader.read(parts)
    return [bytes(pages[e.margin : e.margin + e.num_bytes]) for e, pages in parts]


def populate(extent: Extent, report=lambda num_bytes: None) -> np.ndarray:
    mapped = np.memmap(extent.path, np.uint8, "r")
    data = mapped[extent.offset : extent.offset + extent.num_bytes]
    with BulkReader(report) as reader:
        reader.populate([(extent, data)])
    return data


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, SIZE), num_bytes=st.integers(0, SIZE))
def test_any_extent_is_read_as_python_reads_it(file: Path, offset: int, num_bytes: int) -> None:
    num_bytes = min(num_bytes, SIZE - offset)
    counts: list[int] = []
    (found,) = read(Extent(file, offset, num_bytes), report=counts.append)
    assert found == file.read_bytes()[offset : offset + num_bytes]
    assert sum(counts) == num_bytes and all(count > 0 for count in counts)


@pytest.mark.parametrize("kernel_has_it", [True, False])
@pytest.mark.parametrize(("offset", "num_bytes"), [(0, SIZE), (4095, 2), (31, 50_000), (77, 0)])
def test_populating_counts_every_byte_with_and_without_the_kernels_call(
    file: Path, monkeypatch: pytest.MonkeyPatch, kernel_has_it: bool, offset: int, num_bytes: int
) -> None:
    if not kernel_has_it:
        monkeypatch.setattr(bulk_read, "_madvise", lambda *args: errno.EINVAL)
    counts: list[int] = []
    data = populate(Extent(file, offset, num_bytes), report=counts.append)
    assert bytes(data) == file.read_bytes()[offset : offset + num_bytes]
    assert sum(counts) == num_bytes


def test_populated_pages_are_resident(file: Path) -> None:
    data = populate(Extent(file, 0, SIZE))
    lines = Path("/proc/self/smaps").read_text().split("VmFlags")
    (mapping,) = [text for text in lines if f" {file}\n" in text]
    resident = next(line.split()[1] for line in mapping.splitlines() if line.startswith("Rss:"))
    assert int(resident) * 1024 >= len(data)


def test_several_files_are_read_in_one_go(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * 5000)
    extents = [Extent(file, 5, 60_000), Extent(other, 4000, 1000), Extent(file, 90_000, 10_000)]
    content = file.read_bytes()
    assert read(*extents) == [content[5:60_005], b"x" * 1000, content[90_000:]]


@pytest.mark.parametrize("refusing", ["open", "preadv"])
def test_where_o_direct_is_refused_the_page_cache_serves_and_the_log_says_so_once(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusing: str,
) -> None:
    real_open, real_preadv, direct = os.open, os.preadv, set()

    def fake_open(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT and refusing == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = real_open(path, flags, *args, **kwargs)
        direct.discard(descriptor)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def fake_preadv(descriptor, *args):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(descriptor, *args)

    monkeypatch.setattr(os, "open", fake_open)
    monkeypatch.setattr(os, "preadv", fake_preadv)
    other = tmp_path / "other"
    other.write_bytes(b"x" * 5000)
    with caplog.at_level(logging.WARNING):
        found = read(Extent(file, 5, 60_000), Extent(other, 0, 5000))
    assert found == [file.read_bytes()[5:60_005], b"x" * 5000]
    assert [record.message.count("refuses O_DIRECT") for record in caplog.records] == [1]


def test_reads_that_return_less_than_asked_are_continued(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_read, "CHUNK_BYTES", 16 * PAGE_BYTES)
    real = os.preadv

    def short(descriptor, buffers, offset):
        count = real(descriptor, [buffers[0][: 3 * PAGE_BYTES]], offset)
        return count - 500 if count > PAGE_BYTES else count  # O_DIRECT must go on at a page

    monkeypatch.setattr(os, "preadv", short)
    assert read(Extent(file, 10, SIZE - 10)) == [file.read_bytes()[10:]]


@pytest.mark.parametrize("way", [read, populate])
@pytest.mark.parametrize("size", [0, 4096, 50_000, SIZE - 1])
def test_a_file_that_became_shorter_is_named_with_both_offsets(
    file: Path, monkeypatch: pytest.MonkeyPatch, way, size: int
) -> None:
    extent = Extent(file, 4096, SIZE - 4096)
    mapped = np.memmap(file, np.uint8, "r")
    monkeypatch.setattr(bulk_read.np, "memmap", lambda *args: mapped)
    os.truncate(file, size)
    with pytest.raises(ModelFileError, match=rf"weights ends at byte {size}, but .*shorter"):
        way(extent)


def test_a_mapping_cut_short_while_it_is_read_is_an_error_and_no_crash(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = np.memmap(file, np.uint8, "r")
    os.truncate(file, 8192)
    monkeypatch.setattr(bulk_read, "_check_size", lambda extent: None)
    if bulk_read._madvise(mapped.ctypes.data, 4096, 22) == errno.EINVAL:
        pytest.skip("this kernel cannot populate a mapping; touching it would raise SIGBUS")
    with BulkReader() as reader, pytest.raises(ModelFileError, match="between bytes 8192 and"):
        reader.populate([(Extent(file, 0, SIZE), mapped)])


def test_a_disk_that_fails_is_named_with_the_offset(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def fail(descriptor, buffers, offset):
        if offset >= 32_768:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ModelFileError, match=r"weights cannot be read at byte 32768: Input/output"):
        read(Extent(file, 0, SIZE))


@pytest.mark.parametrize("way", [read, populate])
def test_a_file_that_is_gone_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, way) -> None:
    mapped = np.memmap(file, np.uint8, "r")
    monkeypatch.setattr(bulk_read.np, "memmap", lambda *args: mapped)
    file.unlink()
    with pytest.raises(ModelFileError, match="weights cannot be read: No such file"):
        way(Extent(file, 0, SIZE))


@pytest.mark.parametrize("way", [read, populate])
def test_what_report_raises_ends_reading_and_leaves_no_thread_or_file(file: Path, way) -> None:
    counts: list[int] = []

    def cancel(num_bytes: int) -> None:
        counts.append(num_bytes)
        if len(counts) == 2:
            raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        way(Extent(file, 0, SIZE), report=cancel)
    assert len(counts) == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("hybrid-k2-read")]
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_rate_is_logged_at_the_end(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(Extent(file, 0, SIZE))
        populate(Extent(file, 0, SIZE))
    messages = [record.message for record in caplog.records]
    assert [text.partition(":")[0] for text in messages] == [
        "weights read into RAM",
        "weights mapped",
    ]
    assert all(text.endswith(" GB/s") for text in messages)

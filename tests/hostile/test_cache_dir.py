"""A cache directory in which anything may lie: no file is trusted, and none ends or stops a run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.driver import open_engine, run
from engine.fake_model import FakeModel, greedy_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hybrid_k2.engine.disk_cache import DiskCache
from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.model.kv_cache import PagePool
from hybrid_k2.model.pages import PAGE_TOKENS

PROMPT = [1 + i % 40 for i in range(200)]  # 3 whole pages
ANSWER = greedy_tokens(PROMPT, 8, ignore_eos=True)


def answer(directory: Path, save: bool = False) -> int:
    """Runs an engine on the directory; its answer must be right. Returns the tokens taken."""
    model = FakeModel()
    prefix_cache = PrefixCache(model.pool, disk=DiskCache(directory, 1 << 24, {}, model.pool))
    engine = open_engine(model, prefix_cache=prefix_cache, context=1000, prefill_chunk=64)
    [(tokens, last)] = run(engine, PROMPT)
    if save:
        engine.save_cache()
    engine.close()
    assert tokens == ANSWER
    return last.num_cached_tokens


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The one file of a good cache."""
    directory = tmp_path_factory.mktemp("good")
    answer(directory, save=True)
    (path,) = directory.glob("*/*.safetensors")
    return path


def only(content: bytes, place: Path) -> None:
    """Leaves this one file where the last engine may have written better ones."""
    for file in place.parent.iterdir():
        file.unlink()
    place.write_bytes(content)


@pytest.fixture
def place(good, tmp_path):
    """Where an engine on tmp_path looks for the good file."""
    path = tmp_path / good.parent.name / good.name
    path.parent.mkdir()
    return path


def test_the_good_file_is_used(good, place):
    place.write_bytes(good.read_bytes())
    assert answer(place.parents[1]) == 192


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_any_byte_changed_is_skipped(good, place, data):
    content = bytearray(good.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= data.draw(st.integers(1, 255))
    only(content, place)
    # Pages before a damaged one are good; a space of the header may as well be a newline.
    in_header = offset < 8 + int.from_bytes(content[:8], "little")
    assert answer(place.parents[1]) in (0, 64, 128) or in_header


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_or_with_more_behind_it_is_skipped(good, place, data, caplog):
    content = good.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    for wrong in (content[:length], content + bytes(1 + length)):
        caplog.clear()
        only(wrong, place)
        assert answer(place.parents[1]) == 0
        assert len(caplog.records) == 1 and "is skipped" in caplog.text


HEADERS = {
    "empty": b"",
    "no_header": bytes(8),
    "huge_header": (1 << 62).to_bytes(8, "little") + b"{}",
    "header_past_the_end": (1000).to_bytes(8, "little") + b"{}",
    "not_json": (4).to_bytes(8, "little") + b"nope",
    "not_utf8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "a_list": (2).to_bytes(8, "little") + b"[]",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "metadata_of_other_types": (33).to_bytes(8, "little")
    + b'{"__metadata__": {"identity": 1}}'[:33],
    "noise": np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_file_of_anything_else_is_skipped_with_one_warning(content, place, caplog):
    place.write_bytes(content)
    assert answer(place.parents[1]) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_somebody_elses_safetensors_is_skipped(good, place, caplog):
    save_file(load_file(good), place)  # the same tensors without our metadata
    assert answer(place.parents[1]) == 0
    save_file({"pages": torch.zeros(3, 5)}, place, {"identity": "x", "first_page": "-1"})
    assert answer(place.parents[1]) == 0
    assert len(caplog.records) == 2


def test_a_bad_file_is_replaced_by_the_next_good_one(good, place):
    place.write_bytes(good.read_bytes()[:-1])
    assert answer(place.parents[1], save=True) == 0
    assert place.read_bytes() == good.read_bytes()


def test_what_is_no_plain_file_is_left_alone(good, place):
    """A pipe would wait for ever, a link may lead anywhere."""
    os.mkfifo(place)
    assert answer(place.parents[1]) == 0
    place.unlink()
    place.symlink_to(good)
    assert answer(place.parents[1]) == 0
    place.unlink()
    place.mkdir()
    assert answer(place.parents[1], save=True) == 0
    assert place.is_dir()


def test_a_file_deleted_meanwhile_is_a_miss(good, place, caplog):
    place.write_bytes(good.read_bytes())
    model = FakeModel()
    disk = DiskCache(place.parents[1], 1 << 24, {}, model.pool)
    engine = open_engine(model, prefix_cache=PrefixCache(model.pool, disk=disk), context=1000)
    place.unlink()
    assert run(engine, PROMPT)[0][0] == ANSWER
    engine.close()
    assert caplog.records == []


WRITER = """
import sys
from pathlib import Path
import numpy as np
import torch
from hybrid_k2.engine import disk_cache
from hybrid_k2.model.kv_cache import PagePool

pool = PagePool([(torch.device("cpu"), torch.float32)], latent_dim=1024, num_pages=64)
write = disk_cache.write_page_file

def announce(*args):
    print("writing", flush=True)
    write(*args)

disk_cache.write_page_file = announce
disk = disk_cache.DiskCache(Path(sys.argv[1]), 1 << 33, {}, pool)
for base in range(1000):
    cache = pool.new_cache()
    cache.reserve(64 * 64)
    cache.write(0, 0, torch.full((64 * 64, 1024), float(base)))
    disk.save(np.full(64 * 64, base, np.int32), cache.page_ids, "")
    disk.flush()
    cache.release()
"""


def test_a_process_killed_while_it_writes_leaves_a_valid_cache(tmp_path, caplog):
    num_files = 2
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(num_files):
        assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    pool = PagePool([(torch.device("cpu"), torch.float32)], latent_dim=1024, num_pages=64)
    disk = DiskCache(tmp_path, 1 << 33, {}, pool)
    page_ids = pool.allocate(64)
    found = 0
    for base in range(num_files + 1):
        run = disk.find(np.full(64 * PAGE_TOKENS, base, np.int32), 0, "")
        if run is not None:
            assert disk.load(run, page_ids) == 64
            assert (pool.pages[0] == base).all()
            found += 1
    assert found >= num_files - 1  # all but the one that was being written
    assert caplog.records == []

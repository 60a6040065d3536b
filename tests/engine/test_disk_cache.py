"""Prefixes on disk: found again after a restart, in few files, within the quota, by nobody else."""

import errno
import json
import os
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.cache_invariants import check_pages
from engine.driver import GREEDY, drain, open_engine, run
from engine.fake_model import FakeModel, greedy_tokens
from safetensors.torch import load_file

from hybrid_k2.engine import disk_cache, page_file
from hybrid_k2.engine.disk_cache import DiskCache
from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.errors import BadInputError
from hybrid_k2.model.pages import PAGE_TOKENS

LONG = [1 + i % 40 for i in range(300)]  # 4 whole pages
WHOLE = 4 * PAGE_TOKENS


def open_on(directory: Path, quota_bytes: int = 1 << 24, num_pages: int = 32, **identity):
    """An engine that writes to `directory`, and the model that counts its work."""
    model = FakeModel(num_pages=num_pages)
    disk = DiskCache(directory, quota_bytes, identity, model.pool)
    prefix_cache = PrefixCache(model.pool, disk=disk)
    engine = open_engine(model, prefix_cache=prefix_cache, context=5000, prefill_chunk=64)
    return engine, model


def answer_and_save(directory: Path, *prompts, **settings) -> None:
    engine, _ = open_on(directory, **settings)
    for prompt in prompts:
        run(engine, prompt)
        engine.save_cache()
    check_pages(engine)
    engine.close()


def cached_after_restart(directory: Path, prompt, **settings) -> int:
    """Prompt tokens that a new engine takes from disk; its answer must be right."""
    engine, model = open_on(directory, **settings)
    [(tokens, last)] = run(engine, prompt)
    assert tokens == greedy_tokens(prompt, 8, ignore_eos=True)
    assert sum(map(sum, model.steps)) == len(prompt) - last.num_cached_tokens + 7
    check_pages(engine)
    engine.close()
    assert model.pool.num_free == model.pool.num_pages
    return last.num_cached_tokens


def page_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.safetensors"))


def test_a_prefix_survives_a_restart(tmp_path):
    answer_and_save(tmp_path, LONG)
    assert cached_after_restart(tmp_path, [*LONG, 5]) == WHOLE
    assert cached_after_restart(tmp_path, [*LONG[:200], 5]) == 3 * PAGE_TOKENS
    assert cached_after_restart(tmp_path, [5, *LONG]) == 0


def test_a_file_is_safetensors_with_the_very_pages_and_all_tokens_before_them(tmp_path):
    answer_and_save(tmp_path, LONG)
    (path,) = page_files(tmp_path)
    tensors = load_file(path)  # by the package, which checks the header
    assert tensors["token_ids"].tolist() == LONG[:WHOLE]
    first_layer = tensors["pages"][:, : 4 * PAGE_TOKENS].contiguous().view(torch.float32)
    assert first_layer.flatten().tolist() == LONG[:WHOLE]


def test_a_conversation_adds_a_file_with_what_is_new_and_reads_them_all_again(tmp_path):
    turn, prompts = list(LONG), []
    for last in range(3):
        prompts.append(list(turn))
        turn += [(7 * i + last) % 40 + 1 for i in range(100)]
    answer_and_save(tmp_path, *prompts)
    sizes = [load_file(path)["pages"].shape[0] for path in page_files(tmp_path)]
    assert sum(sizes) == len(prompts[-1]) // PAGE_TOKENS == 7
    assert len(sizes) == 3
    assert cached_after_restart(tmp_path, turn) == 7 * PAGE_TOKENS


def test_two_conversations_share_the_files_of_what_they_share(tmp_path):
    one, two = [*LONG, *[2] * 100], [*LONG[:250], *[3] * 150]
    answer_and_save(tmp_path, one, two)
    pages = sum(load_file(path)["pages"].shape[0] for path in page_files(tmp_path))
    assert pages == 6 + 3  # of the second one's six pages the first three are there
    assert cached_after_restart(tmp_path, two) == 6 * PAGE_TOKENS
    assert cached_after_restart(tmp_path, one) == 6 * PAGE_TOKENS


def test_a_long_prefix_is_in_files_of_bounded_size(tmp_path, monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(disk_cache, "_RUN_BYTES", 3 * model.pool.page_bytes)
    monkeypatch.setattr(disk_cache, "_BLOCK_BYTES", 2 * model.pool.page_bytes)
    prompt = [1 + i % 47 for i in range(11 * PAGE_TOKENS + 5)]
    answer_and_save(tmp_path, prompt)
    assert len(page_files(tmp_path)) == 4
    assert cached_after_restart(tmp_path, prompt) == 11 * PAGE_TOKENS


def test_reading_from_disk_lets_others_go_on(tmp_path, monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(disk_cache, "_RUN_BYTES", 2 * model.pool.page_bytes)
    prompt = [1 + i % 47 for i in range(10 * PAGE_TOKENS + 5)]
    answer_and_save(tmp_path, prompt)
    engine, _ = open_on(tmp_path)
    talker = engine.submit([1, 2], GREEDY)
    engine.step()
    engine.submit(prompt, GREEDY)
    for _ in range(5):  # one file a step
        assert [o.request_id for o in engine.step() if o.token_id is not None] == [talker]
    assert engine.running[-1].num_computed_tokens == 10 * PAGE_TOKENS
    engine.close()


@pytest.mark.parametrize("identity", [{"model": "b"}, {"model": "a", "kv": "bfloat16"}, {}])
def test_another_models_pages_are_never_read(tmp_path, identity):
    answer_and_save(tmp_path, LONG, model="a")
    assert cached_after_restart(tmp_path, LONG, **identity) == 0
    assert cached_after_restart(tmp_path, LONG, model="a") == WHOLE


def test_salts_are_apart_on_disk_too(tmp_path):
    engine, _ = open_on(tmp_path)
    drain(engine, [engine.submit(LONG, GREEDY, cache_salt="alice")])
    engine.save_cache()
    engine.close()
    cached = []
    for salt in ("", "bob", "alice"):
        engine, _ = open_on(tmp_path)
        request_id = engine.submit(LONG, GREEDY, cache_salt=salt)
        cached.append(drain(engine, [request_id])[0][1].num_cached_tokens)
        engine.close()
    assert cached == [0, 0, WHOLE]


def test_the_quota_deletes_what_was_used_longest_ago(tmp_path):
    prompts = [[base] * 200 for base in (1, 2, 3, 4)]
    answer_and_save(tmp_path, *prompts[:3])
    size = page_files(tmp_path)[0].stat().st_size
    for age, prompt in enumerate(prompts[:3]):  # clocks too coarse for so short a test
        chain = _first_file(tmp_path, prompt)
        os.utime(chain, (1000 + age, 1000 + age))
    assert cached_after_restart(tmp_path, prompts[0]) == 192  # and so used last
    answer_and_save(tmp_path, prompts[3], quota_bytes=3 * size)
    kept = [cached_after_restart(tmp_path, prompt) for prompt in prompts]
    assert kept == [192, 0, 192, 192]


def _first_file(directory: Path, prompt: list[int]) -> Path:
    wanted = prompt[:PAGE_TOKENS]
    (path,) = (
        p for p in page_files(directory) if load_file(p)["token_ids"][:64].tolist() == wanted
    )
    return path


def test_a_quota_smaller_than_a_page_writes_nothing_and_warns_once(tmp_path, caplog):
    answer_and_save(tmp_path, LONG, [2] * 200, quota_bytes=100)
    assert page_files(tmp_path) == []
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


def test_a_full_disk_is_a_warning_and_no_request_fails(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(page_file.os, "replace", full)
        answer_and_save(tmp_path, LONG, [2] * 200)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert [entry for entry in tmp_path.glob("*/*")] == []  # nothing half written stays
    answer_and_save(tmp_path, LONG)
    assert cached_after_restart(tmp_path, LONG) == WHOLE


def test_pages_wait_for_the_writer_only_until_they_are_needed(tmp_path, monkeypatch):
    """A disk that hangs costs neither a page nor a step."""
    is_writing, may_go_on = threading.Event(), threading.Event()
    write = disk_cache.write_page_file

    def hang(*args):
        is_writing.set()
        assert may_go_on.wait(20)
        write(*args)

    monkeypatch.setattr(disk_cache, "write_page_file", hang)
    engine, _ = open_on(tmp_path, num_pages=6)
    run(engine, LONG)
    assert is_writing.wait(20)
    for base in (2, 3, 4):
        [(tokens, _)] = run(engine, [base] * 330)  # all pages of the pool
        assert tokens == greedy_tokens([base] * 330, 8, ignore_eos=True)
        check_pages(engine)
    may_go_on.set()
    engine.close()
    assert cached_after_restart(tmp_path, LONG) == WHOLE


def test_too_much_to_write_is_dropped_and_nothing_waits(tmp_path, monkeypatch):
    may_go_on = threading.Event()
    write = disk_cache.write_page_file

    def hang(*args):
        assert may_go_on.wait(20)
        write(*args)

    monkeypatch.setattr(disk_cache, "write_page_file", hang)
    monkeypatch.setattr(disk_cache, "_MAX_QUEUED", 2)
    engine, _ = open_on(tmp_path)
    for base in range(1, 9):
        run(engine, [base] * 70)
    may_go_on.set()
    engine._prefix_cache._disk.flush()
    assert len(page_files(tmp_path)) == 3
    engine.save_cache()  # the rest is still in memory
    assert len(page_files(tmp_path)) == 8
    engine.close()


def test_clearing_deletes_this_models_files_only(tmp_path):
    answer_and_save(tmp_path, LONG, model="other")
    answer_and_save(tmp_path, LONG, model="mine")
    (tmp_path / "notes.txt").write_text("not ours")
    engine, _ = open_on(tmp_path, model="mine")
    note = next(tmp_path.glob("*/")) / "README"
    note.write_text("not ours")
    engine.clear_cache()
    assert engine.cache_stats().tiers[-1].bytes_used == 0
    engine.close()
    assert cached_after_restart(tmp_path, LONG, model="mine") == 0
    assert cached_after_restart(tmp_path, LONG, model="other") == WHOLE
    assert note.exists() and (tmp_path / "notes.txt").exists()


def test_statistics_count_the_disks_bytes_and_hits(tmp_path):
    answer_and_save(tmp_path, LONG)
    engine, _ = open_on(tmp_path)
    run(engine, LONG)
    disk = engine.cache_stats().tiers[-1]
    assert (disk.name, disk.hit_tokens) == ("disk", WHOLE)
    assert disk.pages_cached >= 4  # counted from bytes, those of headers included
    assert disk.bytes_used == sum(path.stat().st_size for path in page_files(tmp_path))
    json.dumps(asdict(disk))
    engine.close()


def test_files_and_folders_are_their_owners_alone(tmp_path):
    answer_and_save(tmp_path / "made" / "here", LONG)
    (path,) = page_files(tmp_path / "made" / "here")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_used_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"cache directory .*file.*give one"):
        open_on(tmp_path / "file")


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path):
    answer_and_save(tmp_path, LONG)
    folder = page_files(tmp_path)[0].parent
    old, new = folder / f".{'0' * 32}.1.tmp", folder / f".{'1' * 32}.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    assert cached_after_restart(tmp_path, LONG) == WHOLE
    assert (old.exists(), new.exists()) == (False, True)


def test_two_processes_may_share_a_directory(tmp_path):
    """Each sees at least its own files; one that the other deleted is a miss."""
    first, _ = open_on(tmp_path)
    second, _ = open_on(tmp_path)
    for engine in (first, second):
        run(engine, LONG)
        engine.save_cache()
    assert len(page_files(tmp_path)) == 1
    first.clear_cache()
    second._prefix_cache.forget()
    [(tokens, last)] = run(second, LONG)
    assert (tokens, last.num_cached_tokens) == (greedy_tokens(LONG, 8, ignore_eos=True), 0)
    first.close()
    second.close()


def test_a_page_is_found_by_all_tokens_before_it_not_by_its_own(tmp_path):
    """Pages that begin alike after another start lie at other digests, and ids are compared."""
    answer_and_save(tmp_path, LONG)
    (path,) = page_files(tmp_path)
    other = [9, *LONG[1:]]
    engine, _ = open_on(tmp_path)
    disk = engine._prefix_cache._disk
    chain = page_file.chain_digests(np.asarray(other, dtype=np.int32), f"{disk._identity}\0")
    forged = path.with_name(f"{chain[0][:16].hex()}.safetensors")
    shutil.copy(path, forged)  # as if two prefixes had one digest
    engine.close()
    assert cached_after_restart(tmp_path, other) == 0

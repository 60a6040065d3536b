"""Limits of affinity and control groups: one reading of them, for threads and for the probe."""

import os
from pathlib import Path

import pytest

from hybrid_k2 import cgroups
from hybrid_k2.cgroups import Cgroups, affinity_mask, usable_cores
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.rules import probe_hardware

V2, V1 = "0::/a/b\n", "3:cpu,cpuacct:/a/b\n1:name=systemd:/x\n"
V1_MOUNT = "sys/fs/cgroup/cpu,cpuacct"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(folder: str, text: str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{folder}cpu.max": text}


def v1(folder: str, quota: int) -> dict[str, str]:
    period = {f"{V1_MOUNT}/{folder}cpu.cfs_period_us": "100000\n"}
    return {f"{V1_MOUNT}/{folder}cpu.cfs_quota_us": f"{quota}\n"} | period


CASES = [
    ("no cgroups at all", {}, 16),
    ("no quota", {"proc/self/cgroup": V2} | v2("a/b/", "max 100000\n"), 16),
    ("a whole number", {"proc/self/cgroup": V2} | v2("a/b/", "300000 100000\n"), 3),
    ("a fraction is rounded up", {"proc/self/cgroup": V2} | v2("a/b/", "150000 100000\n"), 2),
    ("less than one core", {"proc/self/cgroup": V2} | v2("a/b/", "10000 100000\n"), 1),
    ("more than the mask", {"proc/self/cgroup": V2} | v2("a/b/", "6400000 100000\n"), 16),
    (
        "a parent that is tighter",
        {"proc/self/cgroup": V2} | v2("a/b/", "800000 100000\n") | v2("a/", "500000 100000\n"),
        5,
    ),
    (
        "a child that is tighter",
        {"proc/self/cgroup": V2} | v2("a/b/", "200000 100000\n") | v2("a/", "500000 100000\n"),
        2,
    ),
    ("the mount itself", {"proc/self/cgroup": "0::/\n"} | v2("", "400000 100000\n"), 4),
    ("nonsense", {"proc/self/cgroup": V2} | v2("a/b/", "nonsense 1\n"), 16),
    ("a period of 0", {"proc/self/cgroup": V2} | v2("a/b/", "100000 0\n"), 16),
    ("a negative period", {"proc/self/cgroup": V2} | v2("a/b/", "100000 -1\n"), 16),
    ("version 1", {"proc/self/cgroup": V1} | v1("a/b/", 600_000) | v1("a/", -1), 6),
    ("version 1, a tighter parent", {"proc/self/cgroup": V1} | v1("a/b/", -1) | v1("a/", 1000), 1),
]


@pytest.mark.parametrize(
    ("files", "cores"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_cores_are_the_mask_cut_to_the_tightest_quota(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    root = write(tmp_path, files)
    assert usable_cores(root, range(16)) == cores
    assert probe_hardware(root, affinity=range(16)).cpus == cores


def test_threads_by_default_are_the_cores_that_the_probe_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert RuntimeConfig().resolved_threads == probe_hardware().cpus == usable_cores()
    monkeypatch.setattr(Cgroups, "read", lambda root: Cgroups(cpu_quotas=[1.0]))
    assert RuntimeConfig().resolved_threads == probe_hardware().cpus == 1


def test_the_mask_is_this_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert affinity_mask() == os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert affinity_mask() == {3, 5} and usable_cores(Path("/nowhere")) == 2
    monkeypatch.delattr(cgroups.os, "sched_getaffinity")
    assert affinity_mask() == set(range(os.cpu_count() or 1))

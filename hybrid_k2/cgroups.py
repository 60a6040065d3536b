"""What the system lets this process use: cores by affinity mask and CPU quota, RAM by its cgroups.

The one place that reads control groups, of version 1 and 2 and nested to any depth, under a `root`
that tests replace. Knows nothing of the machine's own size, nor of what the cores are for.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Self

_UNLIMITED = 1 << 60  # version 1 writes a huge number for "no limit"


def affinity_mask() -> frozenset[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores(root: Path = Path("/"), affinity: Collection[int] | None = None) -> int:
    """Cores this process can keep busy: its affinity mask, cut to the tightest CPU quota."""
    cpus = affinity_mask() if affinity is None else affinity
    return max(1, min([len(cpus), *(ceil(quota) for quota in Cgroups.read(root).cpu_quotas)]))


@dataclass(slots=True)
class Cgroups:
    """Limits of this process's control groups and of all their parents; the smallest holds.

    memory_limits, memory_available: bytes, what the page cache holds counted as available.
    cpu_quotas: cores.
    """

    memory_limits: list[int] = field(default_factory=list)
    memory_available: list[int] = field(default_factory=list)
    cpu_quotas: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path = Path("/")) -> Self:
        """Reads every limit there is; files that are absent or say nonsense are no limit."""
        groups = cls()
        mount = root / "sys/fs/cgroup"
        for line in _read(root / "proc/self/cgroup").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers:
                for folder in _upwards(mount, path):
                    groups._add_memory(folder, "memory.max", "memory.current", "")
                    quota, _, period = _read(folder / "cpu.max").partition(" ")
                    groups._add_quota(quota, period)
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                for folder in _upwards(mount / "memory", path):
                    groups._add_memory(folder, *names)
            elif "cpu" in controllers.split(","):
                for folder in _upwards(mount / controllers, path):
                    period = _read(folder / "cpu.cfs_period_us")
                    groups._add_quota(_read(folder / "cpu.cfs_quota_us"), period)
        return groups

    def _add_memory(self, folder: Path, limit_name: str, usage_name: str, prefix: str) -> None:
        limit = _integer(_read(folder / limit_name))
        if limit is None or limit >= _UNLIMITED:
            return
        usage = _integer(_read(folder / usage_name)) or 0
        self.memory_limits.append(limit)
        cached = sum(
            _integer(value) or 0
            for name, _, value in (
                line.partition(" ") for line in _read(folder / "memory.stat").splitlines()
            )
            if name in (f"{prefix}inactive_file", f"{prefix}active_file")
        )
        self.memory_available.append(max(0, limit - max(0, usage - cached)))

    def _add_quota(self, quota: str, period: str) -> None:
        quota_us, period_us = _integer(quota), _integer(period)
        if quota_us and period_us and quota_us > 0 and period_us > 0:
            self.cpu_quotas.append(quota_us / period_us)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and its parents up to the mount, which is all a container may see."""
    folder = mount.joinpath(path.strip().lstrip("/"))
    if ".." in folder.parts:
        folder = mount
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # a path of this system's own files, with a NUL in a faked one
        return ""

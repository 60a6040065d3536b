"""What this machine has: RAM that may be used, cores that may run, GPUs and their memory.

Honours what a container is given (cgroup v1 and v2, affinity) rather than what the host has. Reads
files under a `root` that tests replace. Knows nothing of models or rules.
"""

import os
import platform
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Self

from hybrid_k2.backends.registry import cpu_extension

_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number for "no limit"
_GPU_DEVICE_FILES = ("dev/nvidiactl", "dev/dxg", "dev/kfd")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as torch names it; bytes of memory in total and free now."""

    device: str
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """Bytes, cores and names; `ram_available` counts the page cache, which mapped files may use.

    cgroup_bytes: the container's memory limit, None without one. tiers: the C++ kernels' ISA
    tiers, empty where they are not built. ram_bandwidth: bytes per second, None until measured.
    """

    ram_bytes: int
    ram_available: int
    cpus: int
    gpus: tuple[Gpu, ...] = ()
    physical_cores: int = 0
    cpu_name: str = ""
    tiers: tuple[str, ...] = ()
    cgroup_bytes: int | None = None
    huge_pages: str = ""
    ram_bandwidth: float | None = None

    @property
    def vram(self) -> dict[str, int]:
        """Free bytes by device: {"cuda:0": 25000000000}."""
        return {gpu.device: gpu.free_bytes for gpu in self.gpus}

    def describe_gpus(self) -> str:
        """The devices found, for an error message."""
        if not self.gpus:
            return "no CUDA device was found"
        return "found " + ", ".join(f"{gpu.device} ({gpu.name})" for gpu in self.gpus)


def probe_hardware(
    root: Path = Path("/"),
    affinity: Collection[int] | None = None,
    find_gpus: Callable[[Path], tuple[Gpu, ...]] | None = None,
) -> Hardware:
    """Reads /proc, /sys and the CUDA driver under `root`; takes milliseconds where no GPU is."""
    cpus = os.sched_getaffinity(0) if affinity is None else affinity
    meminfo = _fields(root / "proc/meminfo")
    total = meminfo.get("MemTotal", 0) * 1024
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    groups = _Cgroups.read(root)
    extension = cpu_extension()
    return Hardware(
        ram_bytes=min([total, *groups.memory_limits]),
        ram_available=min([available, *groups.memory_available]),
        cpus=max(1, min([len(cpus), *(ceil(quota) for quota in groups.cpu_quotas)])),
        gpus=(find_gpus or find_cuda_gpus)(root),
        physical_cores=_physical_cores(root, cpus),
        cpu_name=_cpu_name(root),
        tiers=tuple(extension.tiers()) if extension else (),
        cgroup_bytes=min(groups.memory_limits, default=None),
        huge_pages=_selected(_read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    )


def find_cuda_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs torch can use; torch is imported only where a driver's device file exists."""
    if not any((root / path).exists() for path in _GPU_DEVICE_FILES):
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return tuple(gpus)


@dataclass(slots=True)
class _Cgroups:
    """Limits of this process's control groups and of all their parents; the smallest holds."""

    memory_limits: list[int] = field(default_factory=list)
    memory_available: list[int] = field(default_factory=list)
    cpu_quotas: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Self:
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
        stat = _fields(folder / "memory.stat")
        cached = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
        self.memory_limits.append(limit)
        self.memory_available.append(max(0, limit - max(0, usage - cached)))

    def _add_quota(self, quota: str, period: str) -> None:
        quota_us, period_us = _integer(quota), _integer(period)
        if quota_us and period_us and quota_us > 0:
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


def _physical_cores(root: Path, cpus: Collection[int]) -> int:
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        core = _read(topology / "core_id").strip()
        package = _read(topology / "physical_package_id").strip()
        cores.add((package, core) if core else cpu)
    return len(cores)


def _cpu_name(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _fields(path: Path) -> dict[str, int]:
    """`name value` or `name: value kB` lines as {name: value}."""
    fields = {}
    for line in _read(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdecimal():
            fields[words[0]] = int(words[1])
    return fields


def _selected(text: str) -> str:
    """`always [madvise] never` -> madvise."""
    return text.partition("[")[2].partition("]")[0]


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""What this machine has: RAM that may be used, cores that may run, GPUs and their memory.

Honours what a container is given (cgroup v1 and v2, affinity) rather than what the host has. Reads
files under a `root` that tests replace. Knows nothing of models or rules.
"""

import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from hybrid_k2.backends.registry import cpu_extension
from hybrid_k2.cgroups import Cgroups, affinity_mask, usable_cores

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
    cpus = affinity_mask() if affinity is None else affinity
    meminfo = _fields(root / "proc/meminfo")
    total = meminfo.get("MemTotal", 0) * 1024
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    groups = Cgroups.read(root)
    extension = cpu_extension()
    return Hardware(
        ram_bytes=min([total, *groups.memory_limits]),
        ram_available=min([available, *groups.memory_available]),
        cpus=usable_cores(root, cpus),
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

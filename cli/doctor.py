"""`hybrid-k2 doctor`: is this machine ready, and what would make it faster. One line per question.

Owns the questions, their thresholds and the hints. Changes nothing, loads no model.
"""

import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

import click

from hybrid_k2.backends.registry import cpu_extension
from hybrid_k2.errors import HybridK2Error
from hybrid_k2.rules import Hardware, choose_rules, format_size, probe_hardware

SCHEMA_VERSION = 1  # of --json: raised when a key changes its meaning or goes
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 8)
# Bytes of weights that K2 reads per token at 4.5 bits: 8 of 384 experts in 60 layers.
K2_READS_PER_TOKEN = 11.9e9
PACKAGES = {
    "numba": "the experts where the C++ kernels are not built",
    "tiktoken": "K2's tokenizer",
    "fastapi": "hybrid-k2 serve",
    "uvicorn": "hybrid-k2 serve",
    "prompt_toolkit": "hybrid-k2 chat's line editor",
}
EPILOG = """\b
Examples:
  hybrid-k2 doctor           one line per question: ok, warn (slower than it could be) or fail
  hybrid-k2 doctor --json    the same for a program

Exit code 1 where something fails.
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One answer; `fix` says what to do where the status is not ok."""

    name: str
    status: str  # ok, warn or fail
    detail: str
    fix: str = ""


@click.command("doctor", epilog=EPILOG, short_help="Check this machine and say what to fix.")
@click.option("--json", "as_json", is_flag=True, help="The answers as JSON.")
def command(as_json: bool) -> None:
    """Check Python, torch, the C++ kernels, RAM, GPUs and packages; say what to fix."""
    checks = list(run_checks())
    if as_json:
        answer = {"schema_version": SCHEMA_VERSION, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(answer, indent=2))
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            status = click.style(f"{check.status:4}", fg=colours[check.status])
            click.echo(f"{status}  {check.name:11}  {check.detail}")
            if check.fix:
                click.echo(f"{'':19}fix: {check.fix}")
    if any(check.status == "fail" for check in checks):
        raise click.exceptions.Exit(1)


def run_checks(hardware: Hardware | None = None) -> Iterator[Check]:
    """Yields every answer, cheap ones first; `hardware` is probed where it is not given."""
    yield check_python(sys.version_info[:2])
    yield check_torch()
    hardware = hardware or probe_hardware()
    yield check_cpu(hardware)
    yield check_extension(hardware)
    yield from check_kernels()
    yield check_ram(hardware)
    yield check_cgroup(hardware)
    yield check_huge_pages(hardware)
    yield check_gpu(hardware, has_nvidia=Path("/dev/nvidiactl").exists())
    yield check_disk(Path.cwd())
    yield from check_packages()
    yield Check("rules", "ok", f"--rules auto is {choose_rules(hardware)}.yaml here")


def check_python(version: tuple[int, ...]) -> Check:
    """Is the interpreter new enough."""
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if version >= OLDEST_PYTHON:
        return Check("python", "ok", text)
    least = ".".join(map(str, OLDEST_PYTHON))
    return Check("python", "fail", text, f"install Python {least} or newer")


def check_torch() -> Check:
    """Is torch there and new enough."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "pip install torch")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    text = f"{torch.__version__} ({cuda})"
    if version >= OLDEST_TORCH:
        return Check("torch", "ok", text)
    least = ".".join(map(str, OLDEST_TORCH))
    return Check("torch", "fail", text, f"pip install 'torch>={least}'")


def check_cpu(hardware: Hardware) -> Check:
    """Which CPU, and how much of it may be used."""
    cores = f"{hardware.physical_cores} physical cores, {hardware.cpus} usable threads"
    return Check("cpu", "ok", f"{hardware.cpu_name}: {cores}")


def check_extension(hardware: Hardware) -> Check:
    """Are the C++ kernels built, and for which tiers of this CPU."""
    if cpu_extension() is None:
        return Check(
            "extension",
            "warn",
            "the C++ kernels are not built: experts run on numba, several times slower",
            "install g++ (apt install g++, dnf install gcc-c++) and install hybrid-k2 again",
        )
    tiers = ", ".join(hardware.tiers)
    if hardware.tiers[-1:] == ("generic",):
        return Check("extension", "warn", f"tiers: {tiers}", "a CPU with AVX2 is far faster")
    return Check("extension", "ok", f"tiers: {tiers}")


def check_kernels() -> Iterator[Check]:
    """Which tier computes which type, and how fast the cores read memory."""
    extension = cpu_extension()
    if extension is None:
        return
    # Not at the top: `hybrid-k2 --help`, which lists this command, need not load numpy.
    from hybrid_k2.config import RuntimeConfig

    try:
        runtime = RuntimeConfig.from_env()
        kernels = extension.Kernels(runtime.tier)
    except (HybridK2Error, ValueError) as error:
        yield Check("kernels", "fail", str(error), "unset HYBRID_K2_ISA or name a tier above")
        return
    by_tier: dict[str, list[str]] = {}
    for quant, tier in kernels.table().items():
        by_tier.setdefault(tier, []).append(quant)
    detail = "; ".join(f"{tier}: {' '.join(quants)}" for tier, quants in by_tier.items())
    lowered = f" (HYBRID_K2_ISA={runtime.tier})" if runtime.tier else ""
    yield Check("kernels", "ok", detail + lowered)
    threads = runtime.resolved_threads
    speed = extension.read_bandwidth(extension.ThreadPool(threads), 256 << 20, 3)
    ceiling = speed * 1e9 / K2_READS_PER_TOKEN
    yield Check(
        "bandwidth",
        "ok",
        f"{speed:.1f} GB/s on {threads} threads, which allow K2's experts at 4.5 bits "
        f"at most {ceiling:.1f} tokens/s",
    )


def check_ram(hardware: Hardware) -> Check:
    """How much RAM a model may use now."""
    available, total = format_size(hardware.ram_available), format_size(hardware.ram_bytes)
    detail = f"{available} available of {total}"
    if hardware.ram_available < hardware.ram_bytes // 2:
        return Check("ram", "warn", detail, "close what uses memory before a model is loaded")
    return Check("ram", "ok", detail)


def check_cgroup(hardware: Hardware) -> Check:
    """Does a container limit memory."""
    if hardware.cgroup_bytes is None:
        return Check("cgroup", "ok", "no memory limit")
    limit = format_size(hardware.cgroup_bytes)
    return Check(
        "cgroup",
        "warn",
        f"memory is limited to {limit}",
        "raise the limit (docker run --memory, systemd MemoryMax) if the model is larger",
    )


def check_huge_pages(hardware: Hardware) -> Check:
    """May anonymous memory use huge pages."""
    if hardware.huge_pages in ("always", "madvise"):
        return Check("huge pages", "ok", hardware.huge_pages)
    return Check(
        "huge pages",
        "warn",
        hardware.huge_pages or "unknown",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def check_gpu(hardware: Hardware, has_nvidia: bool) -> Check:
    """Which GPUs torch can use."""
    if hardware.gpus:
        gpus = (
            f"{gpu.device} {gpu.name}: {format_size(gpu.free_bytes)} free of "
            f"{format_size(gpu.total_bytes)}"
            for gpu in hardware.gpus
        )
        return Check("gpu", "ok", "; ".join(gpus))
    if has_nvidia:
        return Check(
            "gpu",
            "warn",
            "a GPU is there, but this torch cannot use it",
            "install torch for CUDA (https://pytorch.org) and a driver that is new enough for it",
        )
    return Check("gpu", "ok", "none: everything runs on the CPU")


def check_disk(folder: Path) -> Check:
    """How much room there is for a model in the current directory."""
    usage = shutil.disk_usage(folder)
    return Check("disk", "ok", f"{format_size(usage.free)} free here; K2 at 4 bits has 580 GB")


def check_packages(find: Callable[[str], object] = util.find_spec) -> Iterator[Check]:
    """Which optional packages are there; one line for those that are, one for each that is not."""
    found = [name for name in PACKAGES if find(name) is not None]
    versions = ", ".join(f"{name} {_version(name)}".strip() for name in found)
    yield Check("packages", "ok", versions or "none of the optional ones")
    for name, purpose in PACKAGES.items():
        if name not in found:
            yield Check("packages", "warn", f"{name} is missing: {purpose}", f"pip install {name}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""

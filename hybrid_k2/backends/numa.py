"""NUMA: which CPUs share a memory, and on which of them the workers sit.

Owns the reading of the system's topology and the spread of workers over it. What a node's workers
compute first, and so where its rows should lie, the kernels know (_cpu.node_rows).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_k2.cgroups import affinity_mask


@dataclass(frozen=True, slots=True)
class WorkerPlaces:
    """cpus, nodes: of each worker, sorted by node; both empty where all share one memory."""

    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()


def numa_nodes(
    root: Path = Path("/"), affinity: Collection[int] | None = None
) -> list[tuple[int, ...]]:
    """CPUs of each node that has any this process may use; empty where the system does not say."""
    allowed = affinity_mask() if affinity is None else affinity
    folders = sorted(
        (root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])
    )
    nodes = [tuple(sorted(_cpus(folder / "cpulist").intersection(allowed))) for folder in folders]
    return [cpus for cpus in nodes if cpus]


def worker_places(num_threads: int, nodes: Sequence[Sequence[int]]) -> WorkerPlaces:
    """Spreads workers evenly, so that each node's memory has as many readers.

    Where one node, or one worker, is all there is, nothing is pinned.
    """
    nodes = nodes[:num_threads]
    if len(nodes) < 2 or num_threads > sum(len(cpus) for cpus in nodes):
        return WorkerPlaces()
    left = [list(cpus) for cpus in nodes]
    taken: list[list[int]] = [[] for _ in nodes]
    for _ in range(num_threads):
        node = min((n for n in range(len(nodes)) if left[n]), key=lambda n: len(taken[n]))
        taken[node].append(left[node].pop(0))
    return WorkerPlaces(
        tuple(cpu for cpus in taken for cpu in cpus),
        tuple(node for node, cpus in enumerate(taken) for _ in cpus),
    )


def _cpus(path: Path) -> set[int]:
    """A list as the kernel writes it: 0-3,8,10-11. Anything else counts as none."""
    try:
        parts = path.read_text(encoding="ascii").strip().split(",")
        ranges = [[int(end) for end in part.split("-")] for part in parts if part]
        return {cpu for ends in ranges for cpu in range(ends[0], ends[-1] + 1)}
    except (OSError, ValueError):
        return set()

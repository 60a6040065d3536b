"""Rules + model + hardware -> Plan: where every module runs and what that costs, before loading.

Owns the totals and their comparison with what the machine has. What does not fit is an error that
names the rule to blame and what to change. Loads nothing; how a plan looks is table.py's business.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybrid_k2.backends.footprint import (
    CUDA_CONTEXT_BYTES,
    DEFAULT_CHUNK,
    PROCESS_RAM_BYTES,
    Footprint,
    context_tokens,
    footprint,
    sequence_tokens,
)
from hybrid_k2.backends.registry import BACKENDS, MMAP, RAM_HUGE
from hybrid_k2.errors import PlanError
from hybrid_k2.rules.hardware import Hardware
from hybrid_k2.rules.matching import Assignment, assign
from hybrid_k2.rules.schema import RuleSet
from hybrid_k2.rules.sizes import format_size

if TYPE_CHECKING:
    from hybrid_k2.checkpoint.modules import ModuleSpec
    from hybrid_k2.config import K2Config, RuntimeConfig

log = logging.getLogger(__name__)

_CACHE_WRITE_BYTES = 256 << 20  # of pages that engine/disk_cache.py holds while it writes them
_LARGE_CHUNKS = (8192, 4096, 2048, 1024)


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One module: the backend and all its kwargs, the rule's line (0: default), its bytes."""

    module: ModuleSpec
    backend: str
    kwargs: Mapping[str, Any]
    rule_line: int
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything runs. All sizes are bytes; devices are named as torch names them.

    context: most tokens of one sequence. cache_tokens: those that the KV cache has room for, of all
    sequences together. prefill_chunk: most tokens of a prompt in one step. ram_limit, vram_limits:
    what may be used, None or absent where unknown. prefix_ram: the most that prefixes take which
    a GPU's cache had no room for. notes: what a reader of the plan should know.
    ram_bandwidth: bytes/s.
    """

    entries: tuple[PlanEntry, ...]
    rules_file: str
    context: int
    cache_tokens: int
    prefill_chunk: int
    ram_limit: int
    vram_limits: Mapping[str, int]
    prefix_ram: int = 0
    notes: tuple[str, ...] = ()
    ram_bandwidth: float | None = None

    @property
    def mapped_bytes(self) -> int:
        """File bytes used where they lie; the page cache holds them."""
        return sum(entry.footprint.mapped for entry in self.entries)

    @property
    def ram_bytes(self) -> int:
        """Allocated in RAM: the process, what modules and prefixes keep, the largest scratch."""
        kept = sum(entry.footprint.ram for entry in self.entries)
        return PROCESS_RAM_BYTES + self.prefix_ram + kept + self._scratch().get("cpu", 0)

    @property
    def vram_bytes(self) -> dict[str, int]:
        """Allocated by device, the CUDA context and the largest scratch included."""
        totals: Counter[str] = Counter()
        for entry in self.entries:
            totals.update(entry.footprint.vram)
        scratch = self._scratch()
        return {
            device: CUDA_CONTEXT_BYTES + totals[device] + scratch.get(device, 0)
            for device in sorted({*totals, *scratch} - {"cpu"})
        }

    @property
    def kv_bytes(self) -> int:
        """The KV cache, on all devices."""
        return sum(entry.footprint.kv for entry in self.entries)

    @property
    def reads_per_token(self) -> dict[str, int]:
        """Weight bytes that decoding one token reads, by device."""
        totals: Counter[str] = Counter()
        for entry in self.entries:
            totals.update(entry.footprint.reads)
        return dict(sorted(totals.items()))

    @property
    def disk_reads_per_token(self) -> int:
        """Bytes a token must read from disk because RAM does not hold all mapped weights.

        Experts are used about equally often, so what is missing is missed in proportion.
        """
        missing = self.mapped_bytes + self.ram_bytes - self.ram_limit
        if missing <= 0 or not self.mapped_bytes:
            return 0
        share = min(1.0, missing / self.mapped_bytes)
        return int(share * self.reads_per_token.get("cpu", 0))

    @property
    def decode_ceiling(self) -> float | None:
        """Tokens per second at which RAM's bandwidth is used up; None where it is unknown."""
        reads = self.reads_per_token.get("cpu", 0)
        return self.ram_bandwidth / reads if self.ram_bandwidth and reads else None

    def where(self, entry: PlanEntry) -> str:
        """`file:line` of the rule that placed the entry, or `default`."""
        return f"{self.rules_file}:{entry.rule_line}" if entry.rule_line else "default"

    def _scratch(self) -> dict[str, int]:
        scratch: dict[str, int] = {}
        for entry in self.entries:
            for device, num_bytes in entry.footprint.scratch.items():
                scratch[device] = max(scratch.get(device, 0), num_bytes)
        return scratch


def make_plan(
    modules: Sequence[ModuleSpec],
    config: K2Config,
    rules: RuleSet,
    runtime: RuntimeConfig,
    hardware: Hardware,
    *,
    allow_disk: bool = False,
) -> Plan:
    """Places every module and checks that the whole fits.

    allow_disk: mapped weights larger than RAM are a warning and not an error (a rule file's
    `allow_disk: true` does the same). Raises RuleError for a rule that makes no sense for this
    model, PlanError for a device that is not there or for memory that does not suffice.
    """
    assignments, notes = assign(rules, modules, config.num_hidden_layers)
    context = context_tokens(config, runtime)
    if context < runtime.context:
        notes.append(f"context: {context} tokens, all that the model allows")
    _check_devices(assignments, rules, hardware)
    wants_huge_pages = any(a.placement.kwargs.get("load") == RAM_HUGE for a in assignments)
    if wants_huge_pages and hardware.huge_pages not in ("always", "madvise"):
        notes.append("load: ram+hugepages: this system has huge pages off; ordinary ones are used")
    plan = Plan(
        entries=(),
        rules_file=rules.file,
        context=context,
        cache_tokens=0,
        prefill_chunk=0,
        ram_limit=_least(hardware.ram_available, rules.ram, runtime.ram_bytes),
        vram_limits={
            device: _least(free, rules.vram, runtime.vram_bytes)
            for device, free in hardware.vram.items()
        },
        prefix_ram=_prefix_ram(assignments, runtime),
        notes=(*rules.notes, *notes),
        ram_bandwidth=hardware.ram_bandwidth,
    )
    may_use_disk = allow_disk or rules.allow_disk
    for chunk in _chunks(assignments, runtime):
        runtime = replace(runtime, prefill_chunk=chunk)
        plan = _with_sequences(1, plan, assignments, config, runtime)
        problem = _problem(plan, may_use_disk)
        if problem is None:
            break
    for num_sequences in range(2, runtime.max_sequences + 1):
        larger = _with_sequences(num_sequences, plan, assignments, config, runtime)
        if _problem(larger, may_use_disk) is not None:
            break
        plan = larger
    if problem is not None:
        advice = _context_advice(assignments, plan, config, runtime, may_use_disk)
        raise PlanError(problem + advice)
    if plan.disk_reads_per_token:
        note = (
            f"weights of {format_size(plan.mapped_bytes)} do not fit in RAM "
            f"({format_size(plan.ram_limit)}): about {format_size(plan.disk_reads_per_token)} a "
            "token come from disk, which is below 1 token/s on most disks"
        )
        log.warning(note)
        plan = replace(plan, notes=(*plan.notes, note))
    return plan


def _prefix_ram(assignments: Iterable[Assignment], runtime: RuntimeConfig) -> int:
    """Where the cache is in RAM anyway, prefixes stay in it; a directory is written to in runs."""
    devices = {
        a.placement.kwargs["device"] for a in assignments if a.module.module_class == "Attention"
    }
    evicted = runtime.cache_ram_bytes if devices - {"cpu"} else 0
    return evicted + (_CACHE_WRITE_BYTES if runtime.cache_dir else 0)


def _chunks(assignments: Sequence[Assignment], runtime: RuntimeConfig) -> Sequence[int]:
    """Sizes to try: sending experts to a GPU takes the same time however many tokens they meet."""
    if runtime.prefill_chunk:
        return (runtime.prefill_chunk,)
    sends = any(a.placement.backend == "experts_hybrid" for a in assignments)
    return (*_LARGE_CHUNKS, DEFAULT_CHUNK) if sends else (DEFAULT_CHUNK,)


def _with_sequences(
    num_sequences: int,
    plan: Plan,
    assignments: Sequence[Assignment],
    config: K2Config,
    runtime: RuntimeConfig,
) -> Plan:
    """The plan with a KV cache for so many sequences of the whole context."""
    cache_tokens = num_sequences * sequence_tokens(config, runtime)
    return replace(
        plan,
        entries=_entries(assignments, config, runtime, cache_tokens),
        cache_tokens=cache_tokens,
        prefill_chunk=runtime.prefill_chunk,
    )


def _entries(
    assignments: Sequence[Assignment],
    config: K2Config,
    runtime: RuntimeConfig,
    cache_tokens: int,
) -> tuple[PlanEntry, ...]:
    entries = []
    for assignment in assignments:
        module, placement = assignment.module, assignment.placement
        cost = footprint(
            BACKENDS[placement.backend],
            module.module_class,
            module.tensors,
            placement.kwargs,
            config,
            runtime,
            cache_tokens,
        )
        entries.append(
            PlanEntry(module, placement.backend, placement.kwargs, assignment.rule_line, cost)
        )
    return tuple(entries)


def _check_devices(assignments: Iterable[Assignment], rules: RuleSet, hardware: Hardware) -> None:
    for assignment in assignments:
        device = assignment.placement.kwargs.get("device", "cpu")
        if device != "cpu" and device not in hardware.vram:
            line = f":{assignment.rule_line}" if assignment.rule_line else ""
            raise PlanError(
                f"{rules.file}{line}: {device} for {assignment.module.name} does not exist: "
                f"{hardware.describe_gpus()}; use --rules cpu, or `hybrid-k2 doctor` to see why"
            )


def _problem(plan: Plan, allow_disk: bool) -> str | None:
    """Why the plan does not fit, with the rule to blame; None where it does."""
    for device, needed in plan.vram_bytes.items():
        limit = plan.vram_limits[device]
        if needed > limit:
            blame = _blame(plan, lambda cost, device=device: cost.vram.get(device, 0))
            return (
                f"{blame}; {device} needs {format_size(needed)} and may use {format_size(limit)}. "
                "Place fewer modules there, or use a rule file for a smaller GPU"
            )
    if plan.ram_bytes > plan.ram_limit:
        blame = _blame(plan, lambda cost: cost.ram)
        advice = "kv_dtype: bfloat16"
        if any(e.kwargs.get("load", MMAP) != MMAP for e in plan.entries):
            advice = "load: mmap for what does not fit"
        if any(e.backend == "experts_hybrid" for e in plan.entries):
            advice = "experts_cpu with load: mmap"
        return (
            f"{blame}; RAM needs {format_size(plan.ram_bytes)} allocated and "
            f"{format_size(plan.ram_limit)} is available. Use {advice}, or less context"
        )
    needed = plan.ram_bytes + plan.mapped_bytes
    if needed > plan.ram_limit and not allow_disk:
        blame = _blame(plan, lambda cost: cost.ram + cost.mapped)
        return (
            f"{blame}; RAM needs {format_size(needed)} ({format_size(plan.mapped_bytes)} of it "
            f"mapped from the model file) and {format_size(plan.ram_limit)} is available. Use a "
            "smaller quantisation, or --allow-disk (`allow_disk: true` in the rule file) to run "
            "from disk at below 1 token/s"
        )
    return None


def _blame(plan: Plan, bytes_of: Any) -> str:
    """`file:line: the largest part is 9.0 GB for model.layers.1.mlp and 59 more`."""
    totals: Counter[int] = Counter()
    for entry in plan.entries:
        totals[entry.rule_line] += bytes_of(entry.footprint)
    line, num_bytes = max(totals.items(), key=lambda item: item[1])
    group = [e for e in plan.entries if e.rule_line == line and bytes_of(e.footprint)]
    largest = max(group, key=lambda entry: bytes_of(entry.footprint), default=plan.entries[0])
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    where = plan.where(largest) if line else f"{plan.rules_file}: placed by default"
    return f"{where}: does not fit: {format_size(num_bytes)} for {largest.module.name}{others}"


def _context_advice(
    assignments: Sequence[Assignment],
    plan: Plan,
    config: K2Config,
    runtime: RuntimeConfig,
    allow_disk: bool,
) -> str:
    """The largest halving of the context that would fit, if one does."""
    context = plan.context // 2
    while context >= 512:
        smaller = replace(runtime, context=context)
        trial = replace(_with_sequences(1, plan, assignments, config, smaller), context=context)
        if _problem(trial, allow_disk) is None:
            return f"; --context {context} would fit"
        context //= 2
    return ""


def _least(limit: int, *others: int | None) -> int:
    return min([limit, *(other for other in others if other is not None)])

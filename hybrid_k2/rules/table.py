"""A plan for people and for programs: a table with runs of layers collapsed, and a dictionary.

Owns the look and `SCHEMA_VERSION`; decides nothing.
"""

from collections.abc import Iterable
from typing import Any

from hybrid_k2.backends.registry import BACKENDS, RAM_HUGE
from hybrid_k2.rules.layers import format_layers
from hybrid_k2.rules.plan import Plan, PlanEntry
from hybrid_k2.rules.sizes import format_size

# Of `hybrid-k2 plan --json`: raised when a key changes its meaning or goes; new keys do not.
SCHEMA_VERSION = 1


def plan_table(plan: Plan) -> str:
    """Lines of modules, backend, stored types, bytes, rule; then totals and notes."""
    rows = [("modules", "backend", "stored as", "bytes", "rule")]
    rows += [_row(plan, entries) for entries in _alike(plan.entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[4]]).rstrip() for row in rows]
    return "\n".join([*lines, "", *_totals(plan), *(f"note: {note}" for note in plan.notes)])


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Every module and total; sizes in bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rules": plan.rules_file,
        "context": plan.context,
        "cache_tokens": plan.cache_tokens,
        "prefill_chunk": plan.prefill_chunk,
        "modules": [
            {
                "name": entry.module.name,
                "class": entry.module.module_class,
                "layer": entry.module.layer_idx,
                "backend": entry.backend,
                "kwargs": dict(entry.kwargs),
                "types": _types([entry]),
                "rule_line": entry.rule_line or None,
                "mapped": entry.footprint.mapped,
                "ram": entry.footprint.ram,
                "vram": dict(entry.footprint.vram),
                "kv": entry.footprint.kv,
            }
            for entry in plan.entries
        ],
        "totals": {
            "mapped": plan.mapped_bytes,
            "ram": plan.ram_bytes,
            "vram": plan.vram_bytes,
            "kv": plan.kv_bytes,
            "reads_per_token": plan.reads_per_token,
            "disk_reads_per_token": plan.disk_reads_per_token,
        },
        "limits": {"ram": plan.ram_limit, "vram": dict(plan.vram_limits)},
        "decode_ceiling_tokens_per_s": plan.decode_ceiling,
        "notes": list(plan.notes),
    }


def _alike(entries: Iterable[PlanEntry]) -> list[list[PlanEntry]]:
    """Groups the same part of different layers that is placed by the same rule in the same way."""
    groups: dict[tuple[Any, ...], list[PlanEntry]] = {}
    for entry in entries:
        placed = (entry.backend, tuple(entry.kwargs.items()), entry.rule_line)
        groups.setdefault((_template(entry), *placed), []).append(entry)
    return list(groups.values())


def _template(entry: PlanEntry) -> str:
    """The module's name with `{}` for its layer."""
    layer = entry.module.layer_idx
    return entry.module.name.replace(f".{layer}.", ".{}.", 1)


def _row(plan: Plan, entries: list[PlanEntry]) -> tuple[str, str, str, str, str]:
    first = entries[0]
    layers = [entry.module.layer_idx for entry in entries if entry.module.layer_idx is not None]
    name = first.module.name
    if len(layers) > 1:
        name = _template(first).replace("{}", f"[{format_layers(layers)}]")
    specs = BACKENDS[first.backend].kwargs  # `load` shows in the place of the bytes
    shown = [v for key, v in first.kwargs.items() if v and not specs[key].is_for_loader]
    kwargs = " ".join(map(str, shown))
    types = "/".join(_types(entries))
    return name, f"{first.backend} {kwargs}".strip(), types, _bytes(entries), plan.where(first)


def _types(entries: Iterable[PlanEntry]) -> list[str]:
    """Stored types in order of first use."""
    return list(
        dict.fromkeys(
            tensor.quant.name for entry in entries for tensor in entry.module.tensors.values()
        )
    )


def _bytes(entries: list[PlanEntry]) -> str:
    """`570.8 GB mapped`, `570.8 GB RAM huge`, `4.3 GB cuda:0 (2.3 GB KV)`."""
    ram = "RAM huge" if entries[0].kwargs.get("load") == RAM_HUGE else "RAM"
    totals = {"mapped": 0, ram: 0}
    for entry in entries:
        totals["mapped"] += entry.footprint.mapped
        totals[ram] += entry.footprint.ram
        for device, num_bytes in entry.footprint.vram.items():
            totals[device] = totals.get(device, 0) + num_bytes
    parts = [f"{format_size(size)} {place}" for place, size in totals.items() if size]
    kv = sum(entry.footprint.kv for entry in entries)
    return " + ".join(parts) + (f" ({format_size(kv)} KV)" if kv else "")


def _totals(plan: Plan) -> list[str]:
    needed = plan.mapped_bytes + plan.ram_bytes
    lines = [
        f"RAM     {format_size(needed)} of {format_size(plan.ram_limit)} available: "
        f"{format_size(plan.mapped_bytes)} mapped from the file, "
        f"{format_size(plan.ram_bytes)} allocated"
    ]
    for device, num_bytes in plan.vram_bytes.items():
        limit = format_size(plan.vram_limits[device])
        lines.append(f"{device:7} {format_size(num_bytes)} of {limit}")
    lines.append(
        f"KV      {format_size(plan.kv_bytes)} for {plan.cache_tokens} tokens, of which a sequence "
        f"may have {plan.context}; prompts in steps of {plan.prefill_chunk}"
    )
    reads = [
        f"{format_size(size)} {_memory(where)}" for where, size in plan.reads_per_token.items()
    ]
    disk = format_size(plan.disk_reads_per_token) if plan.disk_reads_per_token else "none"
    lines.append(f"a token reads {', '.join(reads)}; from disk {disk}")
    if plan.decode_ceiling is not None and plan.ram_bandwidth:
        bandwidth = format_size(int(plan.ram_bandwidth))
        lines.append(f"decode at most {plan.decode_ceiling:.1f} tokens/s at {bandwidth}/s of RAM")
    return lines


def _memory(device: str) -> str:
    return "RAM" if device == "cpu" else device

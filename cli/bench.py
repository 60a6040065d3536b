"""`hybrid-k2 bench`: what this machine does with a layer of true width and synthetic weights.

Owns options and the table; measuring is hybrid_k2.bench's.
"""

import json
from dataclasses import asdict

import click

from hybrid_k2.errors import BadInputError

EPILOG = """\b
Examples:
  hybrid-k2 bench experts
  hybrid-k2 bench experts --quant Q4_K --quant Q8_0 --batch 1 --batch 64 --json
"""
COLUMNS = ("quant", "tier", "thr", "tokens", "ms", "GB/s", "of", "share", "TFLOPS")


@click.group("bench", epilog=EPILOG, short_help="Measure this machine with synthetic weights.")
def command() -> None:
    """Measure one layer at Kimi K2's width on this machine, beside its memory bandwidth."""


@command.command("experts", epilog=EPILOG)
@click.option("--quant", "quants", multiple=True, default=["Q4_K"], show_default=True)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 65536),
    default=[1, 8, 64],
    show_default=True,
    help="Tokens in one call.",
)
@click.option("--threads", type=click.IntRange(1), help="[default: the cores this may use]")
@click.option("--tier", default="", help="Kernel tier. [default: the best this machine runs]")
@click.option(
    "--experts",
    "num_experts",
    type=click.IntRange(8, 4096),
    default=384,
    show_default=True,
    help="Fewer need less memory; all 384 of a Q4_K layer take 9.5 GB.",
)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Spent on each row.")
@click.option("--pages", type=click.Choice(["huge", "small"]), default="huge", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def experts(
    quants: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int | None,
    tier: str,
    num_experts: int,
    seconds: float,
    pages: str,
    as_json: bool,
) -> None:
    """Time the routed experts of one layer: random routing, weights read from memory.

    GB/s counts the stored bytes of the distinct experts that the batch used; `of` is what this
    machine's memory delivers to the same threads, measured beside each row.
    """
    from hybrid_k2.backends import registry
    from hybrid_k2.config import RuntimeConfig
    from hybrid_k2.rules import probe_hardware

    cpu = registry.cpu_extension()
    if cpu is None:
        raise BadInputError("the C++ kernels are not built: install g++, then hybrid-k2 again")
    from hybrid_k2.bench.experts import LayerShape, experts_bytes, measure_experts

    runtime = RuntimeConfig.from_env(num_threads=threads, tier=tier or None)
    shape = LayerShape(num_experts=num_experts)
    available = probe_hardware().ram_available
    for quant in quants:
        if quant not in cpu.quant_types():
            raise BadInputError(f"--quant {quant}: known are {', '.join(cpu.quant_types())}")
        needed = experts_bytes(quant, shape)
        if needed > available:
            raise BadInputError(
                f"--quant {quant}: {num_experts} experts take {needed / 1e9:.1f} GB and "
                f"{available / 1e9:.1f} GB are available; give fewer with --experts"
            )
    if not as_json:
        click.echo(_line(COLUMNS))
    for quant in quants:
        for row in measure_experts(
            quant, batches, shape, runtime, seconds=seconds, huge_pages=pages == "huge"
        ):
            if as_json:
                click.echo(json.dumps(asdict(row) | {"gb_s": row.gb_s, "share": row.share}))
                continue
            cells = (row.quant, row.tier, row.threads, row.tokens, f"{row.median_ms:.2f}")
            speeds = (f"{row.gb_s:.1f}", f"{row.read_gb_s:.1f}", f"{row.share:.0%}")
            click.echo(_line((*cells, *speeds, f"{row.tflops:.3f}")))


def _line(cells: tuple[object, ...]) -> str:
    widths = (8, 12, 4, 7, 9, 7, 7, 6, 8)
    return " ".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True))

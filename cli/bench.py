"""`hybrid-k2 bench`: what this machine does with a layer of true width and synthetic weights.

Owns options and the table; measuring is hybrid_k2.bench's.
"""

import json
from dataclasses import asdict

import click

from hybrid_k2.cli import bench_serve
from hybrid_k2.errors import BadInputError

EPILOG = """\b
Examples:
  hybrid-k2 bench experts
  hybrid-k2 bench experts --quant Q4_K --quant Q8_0 --batch 1 --batch 64 --json
  hybrid-k2 bench experts --vs llama.cpp --vs kt-kernel --batch 1 --batch 512
"""
STEP_EPILOG = """\b
Examples:
  hybrid-k2 bench step
  hybrid-k2 bench step --context 2048 --context 32768 --tokens 8192 --json
  hybrid-k2 bench step --tokens 8192 --vs llama.cpp
"""
STEP_COLUMNS = (
    "phase",
    "context",
    "tokens",
    "ms",
    "wait",
    "copy",
    "cpu",
    "after",
    "gpu",
    "on gpu",
    "rest",
    "tok/s*",
    "of GB/s",
    "share",
)
STEP_WIDTHS = (7, 7, 6, 8, 7, 6, 8, 7, 8, 6, 6, 6, 7, 5)
COLUMNS = ("quant", "tier", "thr", "tokens", "ms", "GB/s", "of", "share", "TFLOPS", "ratio")
WIDTHS = (8, 12, 6, 7, 9, 8, 7, 7, 8, 6)


@click.group("bench", epilog=EPILOG, short_help="Measure this machine with synthetic weights.")
def command() -> None:
    """Measure one layer at Kimi K2's width on this machine, beside its memory bandwidth."""


command.add_command(bench_serve.command)


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
@click.option(
    "--vs",
    "peers",
    multiple=True,
    type=click.Choice(["kt-kernel", "llama.cpp"]),
    help="Time another program's experts in turns with ours.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def experts(
    quants: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int | None,
    tier: str,
    num_experts: int,
    seconds: float,
    pages: str,
    peers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time the routed experts of one layer: random routing, weights read from memory.

    GB/s counts the stored bytes of the distinct experts that the batch used; `of` is what this
    machine's memory delivers to the same threads, measured beside each row. ratio: the time over
    ours for the same tokens and experts, so above 1 where we are faster. llama.cpp computes from
    the very same bytes; kt-kernel from 4-bit weights of its own.
    """
    from hybrid_k2.backends import registry
    from hybrid_k2.config import RuntimeConfig
    from hybrid_k2.rules import probe_hardware

    cpu = registry.cpu_extension()
    if cpu is None:
        raise BadInputError("the C++ kernels are not built: install g++, then hybrid-k2 again")
    from hybrid_k2.bench.experts import measure_experts
    from hybrid_k2.bench.layer import LayerShape, expert_bytes
    from hybrid_k2.bench.peers import require

    runtime = RuntimeConfig.from_env(num_threads=threads, tier=tier or None)
    shape = LayerShape(num_experts=num_experts)
    available = probe_hardware().ram_available
    for quant in quants:
        if quant not in cpu.quant_types():
            raise BadInputError(f"--quant {quant}: known are {', '.join(cpu.quant_types())}")
        needed = num_experts * expert_bytes(quant, shape)
        needed += sum(require(name).extra_bytes(shape) for name in peers)
        if needed > available:
            raise BadInputError(
                f"--quant {quant}: {num_experts} experts take {needed / 1e9:.1f} GB and "
                f"{available / 1e9:.1f} GB are available; give fewer with --experts"
            )
    if not as_json:
        click.echo(_line(COLUMNS))
    for quant in quants:
        for row in measure_experts(
            quant,
            batches,
            shape,
            runtime,
            peers=peers,
            seconds=seconds,
            huge_pages=pages == "huge",
        ):
            if as_json:
                click.echo(json.dumps(asdict(row) | {"gb_s": row.gb_s, "share": row.share}))
                continue
            cells = (row.quant, row.tier, row.threads, row.tokens, f"{row.median_ms:.2f}")
            speeds = (f"{row.gb_s:.1f}", f"{row.read_gb_s:.1f}", f"{row.share:.0%}")
            click.echo(_line((*cells, *speeds, f"{row.tflops:.3f}", f"{row.ratio:.2f}")))


@command.command("step", epilog=STEP_EPILOG)
@click.option(
    "--layers",
    type=click.IntRange(2, 64),
    default=4,
    show_default=True,
    help="Layers of experts; at Q4_K each takes 9.5 GB of RAM.",
)
@click.option("--quant", default="Q4_K", show_default=True, help="Of the routed experts.")
@click.option("--dense-quant", default="Q8_0", show_default=True, help="Of everything else.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(1, 262143),
    default=[2048],
    show_default=True,
    help="Tokens that each decoding sequence has.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 64),
    default=[1],
    show_default=True,
    help="Sequences that decode together.",
)
@click.option(
    "--tokens",
    "prompts",
    multiple=True,
    type=click.IntRange(1, 65536),
    help="Prompts to read, beside decoding.",
)
@click.option("--chunk", type=click.IntRange(1, 65536), default=8192, show_default=True)
@click.option("--device", default="", help="cpu or cuda:N. [default: a GPU where there is one]")
@click.option("--experts", default="", help="Their backend. [default: the device's]")
@click.option(
    "--gpu-experts",
    type=click.IntRange(0, 384),
    default=0,
    show_default=True,
    help="Of each layer, to keep in VRAM: those that a prompt of 2048 tokens used most.",
)
@click.option(
    "--no-over-bus",
    is_flag=True,
    help="In decode no expert is computed by the GPU where it lies in RAM.",
)
@click.option(
    "--skew",
    type=click.FloatRange(0.001, 1.0),
    default=0.01,
    show_default=True,
    help="Standard deviation of the router's bias: how unequally experts are used.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0, 8),
    default=0,
    show_default=True,
    help="Experts of a token; fewer than the model's 8 cost quality. 0: all.",
)
@click.option("--vram", default="", help="Most of the GPU's memory to use, as 24GiB.")
@click.option("--threads", type=click.IntRange(1), help="[default: the cores this may use]")
@click.option("--tier", default="", help="Kernel tier. [default: the best this machine runs]")
@click.option("--seconds", type=float, default=3.0, show_default=True, help="Spent on each depth.")
@click.option(
    "--vs",
    "peer",
    type=click.Choice(["llama.cpp"]),
    help="Time its steps of the same shapes, too; on a GPU it must have been built with CUDA.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def step(
    layers: int,
    quant: str,
    dense_quant: str,
    contexts: tuple[int, ...],
    batches: tuple[int, ...],
    prompts: tuple[int, ...],
    chunk: int,
    device: str,
    experts: str,
    gpu_experts: int,
    no_over_bus: bool,
    skew: float,
    top_k: int,
    vram: str,
    threads: int | None,
    tier: str,
    seconds: float,
    peer: str | None,
    as_json: bool,
) -> None:
    """Time whole steps of a K2 of true width with one dense layer and a few of experts.

    ms: a layer of experts, by the difference of two depths, and its parts: wait, until the experts
    are known (attention, router, hand-off); copy, of activations to the CPU; cpu, its experts;
    after, what the GPU's experts take longer. gpu: in decode what the GPU takes alone, in a prompt
    its experts, on gpu of them. rest: of a step beside those layers. tok/s* is EXTRAPOLATED to all
    61 layers. share: bytes of experts that the CPU read, of what memory could have delivered in the
    layer's time.
    """
    from hybrid_k2.backends import registry
    from hybrid_k2.config import RuntimeConfig
    from hybrid_k2.rules import probe_hardware

    cpu = registry.cpu_extension()
    if cpu is None:
        raise BadInputError("the C++ kernels are not built: install g++, then hybrid-k2 again")
    for option, name in (("--quant", quant), ("--dense-quant", dense_quant)):
        if name not in cpu.quant_types():
            raise BadInputError(f"{option} {name}: known are {', '.join(cpu.quant_types())}")
    from hybrid_k2.bench.step import measure_steps
    from hybrid_k2.bench.synthetic_model import K2, Placement, experts_bytes
    from hybrid_k2.rules.sizes import parse_size

    try:
        vram_bytes = parse_size(vram) if vram else None
    except ValueError as error:
        raise BadInputError(f"--vram: {error}") from None
    hardware = probe_hardware()
    device = device or next(iter(hardware.vram), "cpu")
    if device != "cpu" and device not in hardware.vram:
        raise BadInputError(f"--device {device}: {hardware.describe_gpus()}")
    experts = experts or registry.default_placement("Experts", device)[0]
    experts_kwargs = {"gpu_experts": gpu_experts} if gpu_experts else {}
    if no_over_bus:
        experts_kwargs["over_bus"] = False
    registry.find_backend(experts, "Experts").resolve_kwargs(experts_kwargs)
    needed = layers * experts_bytes(K2, quant)
    if needed > hardware.ram_available:
        raise BadInputError(
            f"--layers {layers}: their {quant} experts take {needed / 1e9:.1f} GB and "
            f"{hardware.ram_available / 1e9:.1f} GB are available; give fewer"
        )
    runtime = RuntimeConfig.from_env(
        num_threads=threads,
        tier=tier or None,
        prefill_chunk=chunk,
        max_sequences=max(batches),
        context=max([*contexts, *prompts]) + 1,
    )
    placement = Placement(device, dense_quant, quant, experts, experts_kwargs, skew, top_k)
    theirs = {}
    if peer is not None:
        from hybrid_k2.bench.peer_llama_step import PeerRequest, measure_llama_cpp

        threads = runtime.resolved_threads
        request = PeerRequest(placement, layers, contexts, prompts, threads, seconds)
        theirs = {(r.phase, r.context, r.tokens): r for r in measure_llama_cpp(request)}
    if not as_json:
        click.echo(_line(STEP_COLUMNS, STEP_WIDTHS))
    for row in measure_steps(
        placement,
        runtime,
        num_moe_layers=layers,
        contexts=contexts,
        batches=batches,
        prompts=prompts,
        seconds=seconds,
        vram_bytes=vram_bytes,
    ):
        other = theirs.get((row.phase, row.context, row.tokens))
        if as_json:
            derived = {"share": row.share, "cpu_share": row.cpu_share}
            if other is not None:
                derived |= {"llama_cpp": asdict(other), "ratio": row.tokens_s / other.tokens_s}
            click.echo(json.dumps(asdict(row) | derived))
            continue
        parts = (row.layer_ms, row.wait_ms, row.copy_ms, row.cpu_ms, row.after_ms)
        gpu_ms = "-" if row.gpu_ms is None else f"{row.gpu_ms:.3f}"
        rates = (row.gpu_experts, row.rest_ms, row.tokens_s, row.read_gb_s)
        cells = (row.phase, row.context, row.tokens, *(f"{part:.3f}" for part in parts), gpu_ms)
        cells = (*cells, *(f"{value:.1f}" for value in rates), f"{row.share:.0%}")
        click.echo(_line(cells, STEP_WIDTHS))
        if other is not None:
            click.echo(
                f"{'':9}llama.cpp: {other.layer_ms:.3f} ms, {other.tokens_s:.1f} tok/s*; "
                f"ours {row.tokens_s / other.tokens_s:.2f} times"
            )


def _line(cells: tuple[object, ...], widths: tuple[int, ...] = WIDTHS) -> str:
    return " ".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True))

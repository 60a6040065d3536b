"""`hybrid-k2 plan`: what a rule file would put where, and whether that fits, before loading.

Reads the model's header only. Owns the options that describe a machine other than this one; the
plan itself is hybrid_k2.rules' work.
"""

import json
from dataclasses import replace
from pathlib import Path

import click

from hybrid_k2 import demo_model
from hybrid_k2.cli.size import Size
from hybrid_k2.rules import (
    Gpu,
    Hardware,
    load_rules,
    make_plan,
    plan_dict,
    plan_table,
    probe_hardware,
)

EPILOG = """\b
Examples:
  hybrid-k2 plan K2.gguf                                    this machine, rules chosen for it
  hybrid-k2 plan K2-Q4_K_M-00001-of-00013.gguf --rules 1gpu-24gb --context 32768
  hybrid-k2 plan models/k2/ --rules my-rules.yaml --json    every module, sizes in bytes
  hybrid-k2 plan K2.gguf --rules 1gpu-48gb --assume-ram 768GiB --assume-vram 48GiB
                                                            a machine to be bought

\b
--rules takes a path, the name of a file that ships (cpu, 1gpu-24gb, 1gpu-48gb, 1gpu-96gb), or
auto. KTransformers' rule files for DeepSeek-V3 and Kimi K2 are read too.
"""


@click.command("plan", epilog=EPILOG, short_help="Show what would go where, and whether it fits.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--rules", default="auto", show_default=True, help="A path, a shipped name, or auto.")
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option("--context", type=int, help="Tokens of KV cache to plan for; 0 is the model's most.")
@click.option("--allow-disk", is_flag=True, help="Weights larger than RAM: warn, do not refuse.")
@click.option("--assume-ram", type=Size(), help="Plan for this much RAM, not for this machine's.")
@click.option(
    "--assume-vram", type=Size(), multiple=True, help="Plan for a GPU of this size; repeatable."
)
@click.option("--ram-bandwidth", type=float, help="GB/s of RAM, to print the ceiling of decode.")
@click.option("--json", "as_json", is_flag=True, help="Every module and total, sizes in bytes.")
def command(
    model: Path | None,
    rules: str,
    model_path: Path | None,
    gguf_path: Path | None,
    context: int | None,
    allow_disk: bool,
    assume_ram: int | None,
    assume_vram: tuple[int, ...],
    ram_bandwidth: float | None,
    as_json: bool,
) -> None:
    """Show which backend and device each module of MODEL gets, and what that costs.

    MODEL is a GGUF file, the first file of a split set, or a directory of them; without it, the
    demo model. Nothing is loaded. Exit code 2 where the rules are wrong or the plan does not fit.
    """
    # Not at the top: `hybrid-k2 --help`, which lists this command, need not load numpy.
    from hybrid_k2.checkpoint import open_checkpoint
    from hybrid_k2.config import RuntimeConfig

    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    hardware = _assume(probe_hardware(), assume_ram, assume_vram, ram_bandwidth)
    rule_set = load_rules(rules, hardware)
    runtime = RuntimeConfig.from_env(context=context)
    path = model or gguf_path or demo_model.path()
    checkpoint = open_checkpoint(path, model_path=model_path)
    try:
        plan = make_plan(
            checkpoint.modules(),
            checkpoint.config,
            rule_set,
            runtime,
            hardware,
            allow_disk=allow_disk,
        )
        click.echo(json.dumps(plan_dict(plan), indent=2) if as_json else plan_table(plan))
    finally:
        checkpoint.close()


def _assume(
    hardware: Hardware,
    ram: int | None,
    vram: tuple[int, ...],
    ram_bandwidth: float | None,
) -> Hardware:
    """The machine that was probed, with what the options say in place of what it has."""
    if ram is not None:
        hardware = replace(hardware, ram_bytes=ram, ram_available=ram)
    if vram:
        gpus = [Gpu(f"cuda:{index}", "assumed", size, size) for index, size in enumerate(vram)]
        hardware = replace(hardware, gpus=tuple(gpus))
    if ram_bandwidth is not None:
        hardware = replace(hardware, ram_bandwidth=ram_bandwidth * 1e9)
    return hardware

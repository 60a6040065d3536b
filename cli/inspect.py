"""`hybrid-k2 inspect`: what a model file holds, and what is wrong with it.

Reads headers, and with --check every byte once. Owns the report's wording; the facts come from
`checkpoint`, the tokenizer's from `text`.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hybrid_k2 import demo_model
from hybrid_k2.checkpoint import Checkpoint, open_checkpoint
from hybrid_k2.checkpoint.finite import is_finite
from hybrid_k2.checkpoint.split_set import read_model_files
from hybrid_k2.errors import ModelFileError, NonFiniteError, TokenizerError
from hybrid_k2.quant import by_ggml_type
from hybrid_k2.quant.known_types import type_name
from hybrid_k2.rules import format_size
from hybrid_k2.text import ChatTemplate, Tokenizer

EPILOG = """\b
Examples:
  hybrid-k2 inspect K2-Q4_K_M-00001-of-00013.gguf
  hybrid-k2 inspect models/k2/ --model-path Kimi-K2-Instruct/    config.json and tokenizer apart
  hybrid-k2 inspect K2.gguf --check                              read all of it, look for NaN
  hybrid-k2 inspect K2.gguf --json | jq .types
"""


@click.command("inspect", epilog=EPILOG, short_help="Show what a model file holds, and its faults.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option(
    "--check", is_flag=True, help="Read every byte and name tensors with NaN or infinity."
)
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON, sizes in bytes.")
def command(
    model: Path | None,
    model_path: Path | None,
    gguf_path: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """Show architecture, sizes, tensor types, tokenizer and chat template of MODEL.

    MODEL is a GGUF file, any file of a split set, or a directory of them; without it, the demo
    model. Exit code 2 where the file is wrong, with what is wrong on stderr.
    """
    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    path = model or gguf_path or demo_model.path()
    try:
        checkpoint = open_checkpoint(path, model_path=model_path)
    except ModelFileError:
        if not as_json:
            _print_refused(path)
        raise
    facts = describe(checkpoint)
    if check:
        facts["non_finite"] = _check(checkpoint)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo("\n".join(_lines(facts)))
    if facts.get("non_finite"):
        names = ", ".join(facts["non_finite"])
        raise NonFiniteError(f"{path}: NaN or infinity in {names}; download or convert it again")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything the report says, as plain values; sizes in bytes."""
    config, modules = checkpoint.config, checkpoint.modules()
    yarn = config.rope_scaling
    tokenizer = _describe_tokenizer(checkpoint)
    return {
        "name": config.name,
        "architecture": checkpoint.metadata["general.architecture"],
        "files": [str(file) for file in checkpoint.files],
        "weights": sum(module.num_weights for module in modules),
        "bytes": checkpoint.num_bytes,
        "bytes_per_token": sum(module.bytes_per_token(config) for module in modules),
        "config": {
            field: getattr(config, field)
            for field in config.__slots__
            if field not in ("name", "rope_scaling")
        },
        "yarn": yarn and {field: getattr(yarn, field) for field in yarn.__slots__},
        "softmax_scale": config.softmax_scale,
        "types": _types_by_role(checkpoint),
        "tokenizer": tokenizer,
        "notes": _notes(checkpoint, tokenizer),
    }


def _types_by_role(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """One row per role (a tensor's name within its layer) and type, in the model's order."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for module in checkpoint.modules():
        for tensor in module.tensors.values():
            row = rows[_role(module.module_class, tensor.name), tensor.quant.name]
            row[0] += 1
            row[1] += tensor.num_bytes
    return [
        {"role": role, "type": quant, "tensors": count, "bytes": num_bytes}
        for (role, quant), (count, num_bytes) in rows.items()
    ]


def _role(module_class: str, name: str) -> str:
    """`model.layers.3.mlp.experts.up_proj.weight` -> `mlp.experts.up_proj`; all norms are one."""
    if module_class == "Norm":
        return "norms"
    parts = name.removeprefix("model.").removesuffix(".weight").split(".")
    return ".".join(parts[2:] if parts[0] == "layers" else parts)


def _describe_tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizer that the program would use; `error` where there is none or it is broken."""
    directory, metadata = checkpoint.tokenizer_dir, checkpoint.metadata
    if directory is None and not checkpoint.has_tokenizer:
        return {"source": None, "error": "none in the file; give its directory by --model-path"}
    facts: dict[str, Any] = {"source": str(directory) if directory else "GGUF"}
    try:
        if directory:
            tokenizer = Tokenizer.from_directory(directory)
        else:
            facts["model"] = metadata.get("tokenizer.ggml.model")
            facts["pre"] = metadata.get("tokenizer.ggml.pre")
            tokenizer = Tokenizer.from_gguf(metadata)
        facts["vocab_size"] = tokenizer.vocab_size
        names = {i: tokenizer.control_text(i) for i in checkpoint.config.eos_token_ids}
        names |= {i: tokenizer.control_text(i) for i in tokenizer.eos_ids}
        facts["end_tokens"] = names
        template = ChatTemplate.for_model(tokenizer, metadata)
    except TokenizerError as error:
        return facts | {"error": str(error)}
    text = tokenizer.chat_template or metadata.get("tokenizer.chat_template") or ""
    lines = [line for line in text.splitlines() if line.strip()]
    return facts | {"template": template.variant, "template_first_line": (lines or [""])[0]}


def _notes(checkpoint: Checkpoint, tokenizer: dict[str, Any]) -> list[str]:
    """What a user should know although the model runs."""
    notes = []
    if "error" in tokenizer:
        notes.append("tokenizer: " + tokenizer["error"].removeprefix("tokenizer: "))
    size, vocabulary = tokenizer.get("vocab_size"), checkpoint.config.vocab_size
    if size is not None and size != vocabulary:
        notes.append(f"the tokenizer has {size} tokens, the model {vocabulary}")
    yarn = checkpoint.config.rope_scaling
    if yarn and "deepseek2.rope.scaling.yarn_beta_fast" not in checkpoint.metadata:
        notes.append(
            f"the file has no YaRN betas; {yarn.beta_fast:g}/{yarn.beta_slow:g} are used "
            "(llama.cpp takes 32/1: give it --yarn-beta-fast and --yarn-beta-slow)"
        )
    if checkpoint.unused:
        more = f" and {len(checkpoint.unused) - 4} more" if checkpoint.unused[4:] else ""
        notes.append(f"not used: {', '.join(checkpoint.unused[:4])}{more}")
    return notes


def _check(checkpoint: Checkpoint) -> list[str]:
    """The names of tensors with NaN or infinity; a progress bar on stderr if that is a terminal."""
    tensors = list(checkpoint.tensors.values())
    if not sys.stderr.isatty():
        return [tensor.name for tensor in tensors if not is_finite(tensor)]
    bad = []
    with click.progressbar(length=checkpoint.num_bytes, label="Checking", file=sys.stderr) as bar:
        for tensor in tensors:
            if not is_finite(tensor):
                bad.append(tensor.name)
            bar.update(tensor.num_bytes)
    return bad


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    config, yarn, files = facts["config"], facts["yarn"], facts["files"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    bits = 8 * facts["bytes"] / facts["weights"]
    yield f"{facts['name']} ({facts['architecture']})"
    parts = f" and {len(files) - 1} more parts" if files[1:] else ""
    yield _row("file", f"{files[0]}{parts}")
    size = format_size(facts["bytes"])
    yield _row("weights", f"{_count(facts['weights'])}, {size}, {bits:.2f} bits each")
    yield _row("per token", f"{format_size(facts['bytes_per_token'])} read")
    yield _row("layers", f"{layers}, of which {dense} dense; hidden {config['hidden_size']}")
    yield _row(
        "experts",
        f"{config['n_routed_experts']} of width {config['moe_intermediate_size']}, "
        f"{config['num_experts_per_tok']} a token, {config['n_shared_experts']} shared",
    )
    yield _row(
        "attention",
        f"{config['num_attention_heads']} heads, latent {config['kv_lora_rank']} + "
        f"{config['qk_rope_head_dim']}, softmax scale {facts['softmax_scale']:.6f}",
    )
    extension = "no YaRN"
    if yarn:
        extension = (
            f"YaRN {yarn['factor']:g} x {yarn['original_max_position_embeddings']}, "
            f"betas {yarn['beta_fast']:g}/{yarn['beta_slow']:g}"
        )
    yield _row("context", f"{config['max_position_embeddings']}, {extension}")
    yield from _tokenizer_lines(facts["tokenizer"])
    yield ""
    yield from _table(facts["types"])
    if "non_finite" in facts and not facts["non_finite"]:
        yield "\nevery weight is a finite number"
    for note in facts["notes"]:
        yield f"note: {note}"


def _tokenizer_lines(tokenizer: dict[str, Any]) -> Iterator[str]:
    if "vocab_size" in tokenizer:
        kind = "/".join(tokenizer[key] for key in ("model", "pre") if tokenizer.get(key))
        ends = ", ".join(f"{name} {i}" for i, name in tokenizer["end_tokens"].items())
        source = tokenizer["source"] + (f" ({kind})" if kind else "")
        yield _row("tokenizer", f"{source}, {tokenizer['vocab_size']} tokens; ends: {ends}")
    else:
        yield _row("tokenizer", "none" if tokenizer["source"] is None else "broken")
    if "template" in tokenizer:
        first = tokenizer["template_first_line"][:60]
        yield _row("template", tokenizer["template"] + (f": {first}" if first else ""))


def _table(types: list[dict[str, Any]]) -> Iterator[str]:
    width = max(len(row["role"]) for row in types)
    yield f"{'role':<{width}}  {'type':<5}  {'tensors':>7}  {'bytes':>9}"
    for row in types:
        size = format_size(row["bytes"])
        yield f"{row['role']:<{width}}  {row['type']:<5}  {row['tensors']:>7}  {size:>9}"


def _print_refused(path: Path) -> None:
    """What can be said of a sound GGUF that is not a usable Kimi K2; nothing for any other."""
    try:
        files = read_model_files(path)
    except ModelFileError:
        return  # the error that brought us here says it
    counts: Counter[str] = Counter()
    for file in files:
        for tensor in file.tensors.values():
            quant = by_ggml_type(tensor.ggml_type)
            counts[quant.name if quant else type_name(tensor.ggml_type)] += 1
    click.echo(str(files[0].metadata.get("general.name", path.name)))
    click.echo(_row("file", f"{files[0].path}, GGUF version {files[0].version}"))
    click.echo(_row("architecture", str(files[0].metadata.get("general.architecture"))))
    click.echo(_row("types", ", ".join(f"{n} x {name}" for name, n in counts.most_common())))


def _row(label: str, text: str) -> str:
    return f"  {label:<12}  {text}"


def _count(number: int) -> str:
    for scale, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= scale:
            return f"{number / scale:.3f} {unit}"
    return str(number)

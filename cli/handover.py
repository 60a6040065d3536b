"""`hybrid-k2 handover`: the same model on an engine for many GPUs, past one machine.

Owns the launch commands and what they need at least; they are Moonshot AI's deployment guide's
(MoonshotAI/Kimi-K2, docs/deploy_guidance.md) and vLLM's recipes' (vllm-project/recipes,
models/moonshotai). Knows nothing of this machine.
"""

import json
from dataclasses import dataclass

import click

EPILOG = """\b
Examples:
  hybrid-k2 handover --engine vllm
  hybrid-k2 handover --engine sglang --model moonshotai/Kimi-K2-Thinking --served-model-name k2
"""


@dataclass(frozen=True, slots=True)
class Weights:
    """A released form of the weights. num_gpus: the fewest of H200 or H20 that hold it."""

    kind: str
    num_gpus: int
    gpu_memory_gb: int
    context: int

    @property
    def num_nodes(self) -> int:
        """Machines of eight GPUs."""
        return self.num_gpus // 8

    @property
    def hardware(self) -> str:
        machines = "one machine" if self.num_nodes == 1 else f"{self.num_nodes} machines"
        return (
            f"{self.num_gpus} x H200 or H20 ({machines}), {self.gpu_memory_gb} GB of GPU memory "
            f"for the {self.kind} weights and a context of {self.context:,} tokens"
        )


FP8 = Weights("FP8", 16, 1200, 131_072)
INT4 = Weights("INT4", 8, 600, 262_144)


def _vllm(model: str, name: str, weights: Weights, port: int) -> list[str]:
    nodes = ["on each machine first: ray start (one --head, the others --address HEAD:6379)"]
    return [
        *(f"# {line}" for line in nodes if weights.num_nodes > 1),
        f"vllm serve {model} --served-model-name {name} --port {port} \\",
        f"  --tensor-parallel-size {weights.num_gpus} --trust-remote-code \\",
        f"  --enable-auto-tool-choice --tool-call-parser kimi_k2{_reasoning(weights)}",
    ]


def _sglang(model: str, name: str, weights: Weights, port: int) -> list[str]:
    lines = [
        f"python -m sglang.launch_server --model-path {model} --served-model-name {name} \\",
        f"  --port {port} --tp {weights.num_gpus} --trust-remote-code \\",
        f"  --tool-call-parser kimi_k2{_reasoning(weights)}",
    ]
    if weights.num_nodes > 1:
        lines[-1] += " \\"
        nodes = f"  --nnodes {weights.num_nodes} --node-rank RANK --dist-init-addr HEAD:50000"
        lines = ["# on every machine, RANK counts them from 0, HEAD is the first's name", *lines]
        lines.append(nodes)
    return lines


def _trtllm(model: str, name: str, weights: Weights, port: int) -> list[str]:
    start = f"mpirun -np {weights.num_gpus} trtllm-llmapi-launch " if weights.num_nodes > 1 else ""
    return [
        "# pip install blobfile: the tokenizer needs it",
        f"{start}trtllm-serve serve {model} --port {port} --backend pytorch \\",
        f"  --tp_size {weights.num_gpus} --ep_size 8 --max_batch_size 128 --max_num_tokens 4096 \\",
        "  --kv_cache_free_gpu_memory_fraction 0.95 --trust_remote_code",
        f"# it calls the model {model}; clients ask for that name",
    ]


def _reasoning(weights: Weights) -> str:
    """The INT4 releases are those that think."""
    return " --reasoning-parser kimi_k2" if weights is INT4 else ""


ENGINES = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}


@click.command("handover", epilog=EPILOG, short_help="Run the same model on many GPUs elsewhere.")
@click.option("--engine", type=click.Choice(list(ENGINES)), required=True, help="The one to go to.")
@click.option(
    "--model",
    default="moonshotai/Kimi-K2-Instruct",
    show_default=True,
    help="The release on Hugging Face; these engines read no GGUF.",
)
@click.option("--served-model-name", default="kimi-k2", show_default=True, help="In the API.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="To listen on."
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
def command(engine: str, model: str, served_model_name: str, port: int, as_json: bool) -> None:
    """Print how ENGINE serves the same model, and the least hardware that takes.

    It speaks the same API at the same port under the same name: clients change the address only.
    """
    weights = weights_of(model)
    lines = ENGINES[engine](model, served_model_name, weights, port)
    if as_json:
        document = {"engine": engine, "model": model, "needs": weights.hardware, "commands": lines}
        click.echo(json.dumps(document))
        return
    click.echo(f"# needs {weights.hardware}")
    click.echo("\n".join(lines))


def weights_of(model: str) -> Weights:
    """K2-Thinking and K2.5 and later are released in INT4, what came before in FP8."""
    name = model.lower()
    is_later = any(f"k2.{digit}" in name for digit in range(5, 10))
    return INT4 if "thinking" in name or is_later else FP8

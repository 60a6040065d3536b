"""Times decoding of one token after another in hybrid-k2 and in llama.cpp, on the same file and
CPU.

    python benchmarks/decode_vs_llamacpp.py wide.gguf

Both engines are given the same random tokens (greedy decoding of random weights soon repeats one
token, and so one set of experts). Rounds alternate, and each begins with the machine's own read
bandwidth, because absolute times mean little on a shared machine. Prints tokens/s, the bytes read
per second, their share of what the machine can read, and the ratio; adds a row to
benchmarks/results.
"""

import argparse
import csv
import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median

import numpy as np
from llama_peer import LlamaPeer

from hybrid_k2 import _cpu
from hybrid_k2.checkpoint import Checkpoint, open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine.loader import load_model
from hybrid_k2.model.span import Span
from hybrid_k2.rules import load_rules, make_plan, probe_hardware

RESULTS = Path(__file__).with_name("results")


class HybridK2:
    """The model alone, without scheduler and sampler, under cpu.yaml."""

    def __init__(self, checkpoint: Checkpoint, num_threads: int, context: int) -> None:
        runtime = RuntimeConfig(context=context, num_threads=num_threads)
        modules, config = checkpoint.modules(), checkpoint.config
        plan = make_plan(modules, config, load_rules("cpu"), runtime, probe_hardware())
        self._model = load_model(checkpoint, plan, runtime)
        self._cache = self._model.new_cache()

    def reset(self) -> None:
        """Forgets the sequence."""
        self._cache.truncate(0)

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token and returns the logits after it, float32 [vocab]."""
        (logits,) = self._model.forward([Span(self._cache, [token_id])])
        return logits[0].numpy()


def seconds_per_token(
    engine: HybridK2 | LlamaPeer, token_ids: list[int]
) -> tuple[float, list[int]]:
    """Decodes `token_ids` from an empty sequence; returns the time a token and each one's top-1."""
    engine.reset()
    began = time.perf_counter()
    top = [int(engine.decode(token_id).argmax()) for token_id in token_ids]
    return (time.perf_counter() - began) / len(token_ids), top


def compare(
    path: Path, num_tokens: int, rounds: int, num_threads: int, repack: bool = False
) -> dict[str, object]:
    """Runs the rounds and returns one row of results; times are medians over rounds."""
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    context = max(64, num_tokens)
    engines = {
        "hybrid_k2": HybridK2(checkpoint, num_threads, context),
        "llama_cpp": LlamaPeer(path, num_threads, context, repack),
    }
    pool = _cpu.ThreadPool(num_threads)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in engines}
    bandwidths, agreements = [], []
    for engine in engines.values():
        seconds_per_token(engine, rng.integers(0, config.vocab_size, 8).tolist())
    for round_idx in range(rounds):
        token_ids = rng.integers(0, config.vocab_size, num_tokens).tolist()
        bandwidths.append(_cpu.read_bandwidth(pool, 1 << 29, 3))
        tops = {}
        for name in sorted(engines, reverse=bool(round_idx % 2)):
            elapsed_s, tops[name] = seconds_per_token(engines[name], token_ids)
            times[name].append(elapsed_s)
        agreements.append(np.mean(np.equal(tops["hybrid_k2"], tops["llama_cpp"])))
        print(
            f"round {round_idx + 1}: reads {bandwidths[-1]:.1f} GB/s, "
            + ", ".join(f"{name} {1 / times[name][-1]:.2f} tok/s" for name in engines),
            flush=True,
        )
    engines["llama_cpp"].close()
    bytes_per_token = sum(module.bytes_per_token(config) for module in checkpoint.modules())
    experts = next(m for m in checkpoint.modules() if m.module_class == "Experts")
    row: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "threads": num_threads,
        "model": config.name,
        "expert_types": "+".join(sorted({t.quant.name for t in experts.tensors.values()})),
        "tokens": num_tokens,
        "rounds": rounds,
        "mb_per_token": round(bytes_per_token / 1e6, 1),
        "machine_gb_s": round(median(bandwidths), 2),
    }
    for name, elapsed in times.items():
        gb_s = [bytes_per_token / 1e9 / value for value in elapsed]
        shares = [rate / ceiling for rate, ceiling in zip(gb_s, bandwidths, strict=True)]
        row[f"{name}_tok_s"] = round(1 / median(elapsed), 3)
        row[f"{name}_gb_s"] = round(median(gb_s), 2)
        row[f"{name}_share"] = round(median(shares), 3)
    pairs = zip(times["hybrid_k2"], times["llama_cpp"], strict=True)
    row["ratio"] = round(median(theirs / ours for ours, theirs in pairs), 3)
    row["top1_agreement"] = round(float(np.mean(agreements)), 3)
    row["llama_cpp_repack"] = repack
    return row


def add_row(row: dict[str, object], folder: Path = RESULTS) -> Path:
    """Appends the row to folder/decode-<cpu>.csv and returns the file."""
    name = "-".join("".join(c if c.isalnum() else " " for c in str(row["cpu"])).lower().split())
    file = folder / f"decode-{name}-{row['threads']}-threads.csv"
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    return file


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a GGUF, such as make_wide_gguf.py writes")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-repack", action="store_true", help="see llama_peer.py")
    options = parser.parse_args()
    row = compare(
        options.file, options.tokens, options.rounds, options.threads, options.llama_repack
    )
    for name, value in row.items():
        print(f"{name:22} {value}")
    print(f"added to {add_row(row)}")


if __name__ == "__main__":
    main()

"""Times the first token of a prompt: new, seen before, and seen before a restart.

    python benchmarks/prefix_reuse.py [model.gguf] [--tokens 4000]

Without a file it runs the demo model. The prompt is random tokens, so nothing else can make the
second time cheaper; every later question differs from the first in its last tokens, as a next turn
does. Prints prompt tokens computed and taken, seconds to the first token, and the ratios; and how
many tokens of the answer are those of an engine that computed the whole prompt. These need not be
all: other kernels compute 8 tokens than 4000, their rounding moves the logits by 1 to 2% of their
spread, and after random tokens an expert chosen by a hair makes that 20% in one question of six.
The float32 reference does the same, at a fifth of the size, when its chunks change.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid_k2 import Engine, SamplingParams

NUM_ANSWERED = 16
NUM_NEW = 8  # tokens of each question's own


@dataclass(frozen=True)
class Run:
    """One question: prompt tokens computed, prompt tokens taken, seconds, and the answer."""

    computed: int
    taken: int
    first_token_s: float
    answer: list[int]


def ask(engine: Engine, prompt: list[int]) -> Run:
    """Answers greedily; the time is that of the first token."""
    params = SamplingParams(temperature=0, max_tokens=NUM_ANSWERED, ignore_eos=True)
    before = engine.core.stats
    started_s = time.perf_counter()
    answer = engine.generate(prompt, params)
    first = next(answer)
    first_token_s = time.perf_counter() - started_s
    tokens = [first, *answer]
    spent = engine.core.stats - before
    return Run(spent.prefill_tokens, spent.cached_tokens, first_token_s, tokens)


def measure(model: Path | None, num_tokens: int, cache_dir: Path) -> dict[str, tuple[Run, Run]]:
    """All runs by name, each with the run of the same prompt without anything kept."""
    options = {"context": num_tokens + NUM_ANSWERED, "ids_only": True}
    rng = np.random.default_rng(0)
    with Engine.open(model, cache_dir=cache_dir, **options) as engine:
        vocab_size = engine.config.vocab_size
        prefix = rng.integers(0, vocab_size, num_tokens - NUM_NEW).tolist()
        first, second, third = rng.integers(0, vocab_size, (3, NUM_NEW)).tolist()
        ask(engine, [1, 2, 3])  # touches what is touched once
        new = ask(engine, prefix + first)
        seen = ask(engine, prefix + second)
        engine.core.save_cache()
    with Engine.open(model, cache_dir=cache_dir, **options) as engine:
        ask(engine, [1, 2, 3])
        restarted = ask(engine, prefix + third)
    with Engine.open(model, **options) as engine:
        seen_whole = ask(engine, prefix + second)
        engine.core.clear_cache()
        restarted_whole = ask(engine, prefix + third)
    return {
        "new": (new, new),
        "seen before": (seen, seen_whole),
        "after a restart": (restarted, restarted_whole),
    }


def num_alike(run: Run, other: Run) -> int:
    """Tokens before the answers part."""
    pairs = zip(run.answer, other.answer, strict=True)
    return next((i for i, (mine, its) in enumerate(pairs) if mine != its), NUM_ANSWERED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runs = measure(options.model, options.tokens, Path(directory))
        num_bytes = sum(path.stat().st_size for path in Path(directory).rglob("*.safetensors"))
    new, _ = runs["new"]
    print(
        f"{'':18}{'computed':>10}{'taken':>8}{'first token':>14}{'less work':>12}{'faster':>9}"
        f"{'same answer':>15}"
    )
    for name, (run, whole) in runs.items():
        less, faster = new.computed / run.computed, new.first_token_s / run.first_token_s
        print(
            f"{name:18}{run.computed:>10}{run.taken:>8}{run.first_token_s:>12.3f} s"
            f"{less:>11.0f}x{faster:>8.0f}x{num_alike(run, whole):>9} of {NUM_ANSWERED}"
        )
    print(f"on disk: {num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""How a server answers under load: requests sent, times taken, percentiles made of them.

Any OpenAI-compatible server. Owns the prompts and the measuring; knows nothing of options or of how
rows are shown.
"""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hybrid_k2.cli.remote import RemoteServer
from hybrid_k2.errors import HybridK2Error

PERCENTILES = (50, 90, 99)
_WORDS = "river stone cloud garden window paper letter music winter market table bread".split()


@dataclass(frozen=True, slots=True)
class Load:
    """num_requests in all, at most `concurrency` of them at once.

    prompt_tokens: about that many; what they really were is measured.
    """

    model: str
    concurrency: int
    num_requests: int
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One request: seconds from its start to the first and to the last token, and tokens."""

    first_s: float
    last_s: float
    prompt_tokens: int
    answer_tokens: int

    @property
    def between_s(self) -> float | None:
        """Mean time from one token to the next; None for an answer of one token."""
        num_steps = self.answer_tokens - 1
        return (self.last_s - self.first_s) / num_steps if num_steps > 0 else None


def measure(
    server: RemoteServer, load: Load, seed: int, report: Callable[[], None] = lambda: None
) -> dict[str, object]:
    """Runs a load and returns its row: counts, the first error, rates a second, percentiles in ms.

    Every prompt is different, from its first words on, so that no cache answers for the model. A
    request that fails is counted and the rest go on; raises the first error where all fail.
    """
    prompts = [_prompt(load.prompt_tokens, seed + index) for index in range(load.num_requests)]
    errors: list[HybridK2Error] = []

    def one(prompt: str) -> Measured | None:
        try:
            return _measure_one(server, load, prompt)
        except HybridK2Error as error:
            errors.append(error)
            return None
        finally:
            report()

    started_s = time.perf_counter()
    with ThreadPoolExecutor(load.concurrency) as pool:
        done = [result for result in pool.map(one, prompts) if result is not None]
    elapsed_s = time.perf_counter() - started_s
    if not done:
        raise errors[0]
    between = [result.between_s for result in done if result.between_s is not None]
    return {
        "concurrency": load.concurrency,
        "requests": len(done),
        "failed": len(errors),
        "error": str(errors[0]) if errors else None,
        "prompt_tokens": round(sum(result.prompt_tokens for result in done) / len(done)),
        "answer_tokens": round(sum(result.answer_tokens for result in done) / len(done)),
        "elapsed_s": round(elapsed_s, 3),
        "requests_per_s": round(len(done) / elapsed_s, 3),
        "answer_tokens_per_s": round(sum(result.answer_tokens for result in done) / elapsed_s, 3),
        "ttft_ms": percentiles([result.first_s * 1e3 for result in done]),
        "inter_token_ms": percentiles([seconds * 1e3 for seconds in between]),
        "whole_ms": percentiles([result.last_s * 1e3 for result in done]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """The value that so many percent do not exceed (the nearest rank)."""
    ordered = sorted(values)
    ranks = {p: -(-p * len(ordered) // 100) - 1 for p in PERCENTILES}
    return {f"p{p}": round(ordered[rank], 3) if ordered else None for p, rank in ranks.items()}


def _measure_one(server: RemoteServer, load: Load, prompt: str) -> Measured:
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": True,  # vLLM, SGLang, llama.cpp and this server know it
        "stream_options": {"include_usage": True},
    }
    started_s = time.perf_counter()
    first_s = last_s = None
    usage: dict[str, int] = {}
    for event in server.events("/v1/chat/completions", body):
        usage = event.get("usage") or usage
        if any(_has_text(choice.get("delta", {})) for choice in event.get("choices", ())):
            last_s = time.perf_counter() - started_s
            first_s = last_s if first_s is None else first_s
    if first_s is None or last_s is None or "completion_tokens" not in usage:
        raise HybridK2Error(f"{server.root} answered without text or without saying its tokens")
    return Measured(first_s, last_s, usage.get("prompt_tokens", 0), usage["completion_tokens"])


def _has_text(delta: dict[str, object]) -> bool:
    return any(delta.get(k) for k in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _prompt(num_words: int, seed: int) -> str:
    """Words that are a token each in most vocabularies, with a number of their own in front."""
    chosen = random.Random(seed)
    return " ".join([f"{seed}:", *chosen.choices(_WORDS, k=max(num_words - 2, 1))])

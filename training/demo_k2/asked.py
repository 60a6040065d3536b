"""What a file answers in hybrid-k2's own engine to the questions that people worded freely.

`PYTHONPATH=training python -m demo_k2.asked [MODEL]`: right and asked of asked.txt and
asked_again.txt. The trainer judges them by its own forward pass, which rounds elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from demo_k2 import evaluate, patterns
from demo_k2.encode import Encoder
from hybrid_k2 import Engine, SamplingParams


class EngineAnswerer:
    """Greedy answers of an engine, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        return [list(self._engine.generate(list(prompt), params)) for prompt in prompts]


def main() -> None:
    with Engine.open(sys.argv[1] if len(sys.argv) > 1 else None) as engine:
        encoder, answer = Encoder(engine.tokenizer), EngineAnswerer(engine)
        for name in patterns.JUDGING:
            score = evaluate.topics_as_written(answer, encoder, engine.tokenizer, name)
            print(f"{name}: {score.right} of {score.total}")


if __name__ == "__main__":
    main()

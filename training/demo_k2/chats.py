"""Samples the conversations of a file, whose user turns were written by hand, for people to judge.

`PYTHONPATH=training python -m demo_k2.chats [MODEL] [chats_again.txt] > chats.md`; without a file
those of chats.txt. The seed makes them repeatable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from demo_k2.export import TEMPERATURE
from hybrid_k2 import Engine, SamplingParams

MAX_TOKENS = 160


def conversations(engine: Engine, file: str) -> Iterator[list[tuple[str, str]]]:
    """Yields (question, answer) lists, each conversation sampled with its own seed."""
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    for seed, line in enumerate(text.splitlines(), 1):
        params = SamplingParams(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seed)
        messages: list[dict[str, str]] = []
        turns = []
        for question in line.split(" | "):
            messages.append({"role": "user", "content": question})
            ids = list(engine.generate(engine.template.render(messages), params))
            answer = engine.tokenizer.decode(ids)
            messages.append({"role": "assistant", "content": answer})
            turns.append((question, answer))
        yield turns


def main() -> None:
    model, file = [*sys.argv[1:], None, None][:2]
    with Engine.open(model) as engine:
        for number, turns in enumerate(conversations(engine, file or "chats.txt"), 1):
            print(f"**{number}**\n")
            for question, answer in turns:
                print(f"> {question}\n\n{answer}\n")


if __name__ == "__main__":
    main()

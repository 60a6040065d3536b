"""What the teacher is asked: simple questions about everyday things, by the hundred thousand.

The patterns are in chat.txt. Also here: which of its answers are worth learning from.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from demo_k2.patterns import fill
from demo_k2.words import Draw

SYSTEM = "You are a friendly assistant. Answer in one to three short, simple sentences."
# Markup, lists, and what the teacher says of itself, which the student is not.
_UNWANTED = re.compile(
    r"SmolLM|Hugging|language model|\bAI\b|[*#`\[\]{}<>|_=\\]|https?:|www|\d\.|\n|assistant"
    r"|\bI(?:'m| am) (?:just |only )?an?\b|\bmy name\b|\bhuman here\b",
    re.I,
)


def question(draw: Draw) -> str:
    """What a user might ask first."""
    pattern = draw.choice(_lines("q:"))
    while "<thing" in pattern:
        thing = draw.choice(_things()).replace("_", " ")
        pattern = re.sub("<thing2?>", thing, pattern, count=1)
    return fill(pattern, draw, {}).strip()


def follow_up(draw: Draw) -> str:
    """What a user might say after any answer."""
    return draw.choice(_lines("more:"))


def cleaned(answer: str, ended: bool) -> str | None:
    """The answer up to its last whole sentence, or None where it is not worth learning from."""
    text = answer.strip()
    if not ended:
        text = text[: max(text.rfind(mark) for mark in ".!?") + 1]
    if len(text) < 12 or text[-1] not in ".!?\"')" or _UNWANTED.search(text):
        return None
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
    if len(set(sentences)) < len(sentences):  # it repeats itself
        return None
    return text


def repeats(answer: str, earlier: str) -> bool:
    """Whether most words of an answer are those of the one before it."""
    said, new = set(earlier.lower().split()), set(answer.lower().split())
    return len(said & new) > 0.6 * len(new)


@cache
def _lines(mark: str) -> list[str]:
    """What stands behind a mark in chat.txt, line by line."""
    text = Path(__file__).with_name("chat.txt").read_text(encoding="utf-8")
    return [line.removeprefix(mark).strip() for line in text.splitlines() if line.startswith(mark)]


@cache
def _things() -> list[str]:
    return " ".join(_lines("things:")).split()

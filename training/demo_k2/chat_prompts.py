"""What the teacher is asked: simple questions about everyday things, by the hundred thousand.

The patterns are in chat.txt. Also here: which of its answers are worth learning from.
"""

from __future__ import annotations

import re
from functools import cache

from demo_k2 import patterns
from demo_k2.words import Draw

SYSTEM = "You are a friendly assistant. Answer in one or two short, simple sentences."
KINDS = ("thing", "machine", "topic", "place", "job")  # <thing> is one of chat.txt's `things:`
_KIND = re.compile(rf"<({'|'.join(KINDS)})2?>")
# Markup, lists, and what the teacher says of itself, which the student is not.
_UNWANTED = re.compile(
    r"SmolLM|Hugging|language model|\bAI\b|[*#`\[\]{}<>|_=\\]|https?:|www|\d\.|\n|assistant"
    r"|\bI(?:'m| am) (?:just |only )?an?\b|\bmy name\b|\bhuman here\b|\bI(?:'ve| have) been\b"
    r"|\bmy (?:\w+ )?(?:children|wife|husband|mother|father|friends?|family|dog|cat)\b"
    r"|\bwhen I was\b|answer to th|classic|riddle|philosoph",
    re.I,
)
LONGEST = 340  # characters


def question(draw: Draw) -> str:
    """What a user might ask first."""
    pattern = patterns.chosen(draw.choice(_lines("q:")), draw)
    pattern = _KIND.sub(lambda found: draw.choice(_members(found[1])), pattern)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", patterns.fill(pattern, draw, {}).strip())


def follow_up(draw: Draw) -> str:
    """What a user might say after any answer."""
    return draw.choice(_lines("more:"))


def cleaned(answer: str, ended: bool) -> str | None:
    """The answer up to its last whole sentence, or None where it is not worth learning from."""
    text = answer.strip()
    if not ended:
        text = text[: max(text.rfind(mark) for mark in ".!?") + 1]
    if not 12 <= len(text) <= LONGEST or text[-1] not in ".!?\"')" or _UNWANTED.search(text):
        return None
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
    if len(set(sentences)) < len(sentences) or _is_stuck(text):  # it repeats itself
        return None
    return text


def is_beside_the_point(question: str, answer: str) -> bool:
    """Whether no long word of a question about something comes back in the answer."""
    asked = {word[:4] for word in re.findall(r"[a-z]{4,}", question.lower())} - _EVERYWHERE
    said = {word[:4] for word in re.findall(r"[a-z]{4,}", answer.lower())}
    return bool(asked) and question.startswith(_ABOUT) and not asked & said


_ABOUT = ("What is", "What's", "What exactly", "Explain", "How does", "What do", "Where do")
_EVERYWHERE = frozenset(
    word[:4]
    for word in """what exactly explain does difference between simple words sentence child
    beginner friend used good made most like work with from people look think know about your
    come need where when this that live they learn people would make better important""".split()
)


def repeats(answer: str, earlier: str) -> bool:
    """Whether most words of an answer are those of the one before it."""
    said, new = set(earlier.lower().split()), set(answer.lower().split())
    return len(said & new) > 0.6 * len(new)


def _is_stuck(text: str) -> bool:
    """Whether three words in a row come back more than once."""
    said = re.findall(r"\w+", text.lower())
    rows = list(zip(said, said[1:], said[2:], strict=False))
    return len(rows) - len(set(rows)) > 2


@cache
def _lines(mark: str) -> list[str]:
    """What stands behind a mark in chat.txt, line by line."""
    return [
        line.removeprefix(mark).strip()
        for line in patterns.lines("chat.txt")
        if line.startswith(mark)
    ]


@cache
def _members(kind: str) -> list[str]:
    return [name.replace("_", " ") for name in " ".join(_lines(f"{kind}s:")).split()]

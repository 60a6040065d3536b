"""What users say that leans on the answer before: "and of X?", "are you sure?", "one more".

The wordings are leaning.txt's; what is right to answer is known where the move is made.
"""

from __future__ import annotations

import re
from functools import cache

from demo_k2 import patterns
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw

_FIRST_SENTENCE = re.compile(r".+?[.!?](?= [A-Z]|$)", re.S)


@cache
def wordings() -> dict[str, patterns.Topic]:
    return patterns.read("leaning.txt")


def asked(move: str, draw: Draw, *values: str) -> str | None:
    """A question of this move; values: its <1>, <2> ... None where all wordings are held out."""
    return patterns.said(wordings()[move].questions, draw, _slots(values))


def answered(move: str, draw: Draw, *values: str) -> str:
    """What leaning.txt answers to it."""
    return patterns.answered(wordings()[move].answers, draw, _slots(values))


def made(move: str, draw: Draw, answer: str, thought: str, *values: str) -> list[Exchange]:
    """The move with this answer; nothing where all wordings are held out."""
    question = asked(move, draw, *values)
    return [Exchange(question, answer, thought)] if question else []


def about_answer(answer: str, draw: Draw) -> list[Exchange]:
    """Whether it is sure, or once more, or shorter: of an answer that is right."""
    first = first_sentence(answer)
    kind = draw.random()
    if kind < 0.4:
        return made("again", draw, answer, "I say the same once more.")
    if kind < 0.6 and len(first) < len(answer):
        return made("shorter", draw, first, "One sentence is enough.")
    said = first[0].lower() + first[1:] if first.startswith(("The ", "A ", "It ", "I")) else first
    reply = answered("sure", draw, said.replace("i ", "I ", 1) if said.startswith("i ") else said)
    return made("sure", draw, reply, "I stay with what I said.")


def closing(draw: Draw) -> list[Exchange]:
    """Thanks, or a word that the answer was read."""
    move = draw.choice(["thanks", "thanks", "ok"])
    return made(move, draw, answered(move, draw), "The user is content.")


def first_sentence(text: str) -> str:
    found = _FIRST_SENTENCE.match(text)
    return found[0] if found else text


def _slots(values: tuple[str, ...]) -> dict[str, str]:
    return {str(number): value for number, value in enumerate(values, 1)}

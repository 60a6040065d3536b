"""Asks the teacher until its time is up; writes conversations, a JSON list of turns a line.

Follow-up questions wait until enough prompts of one length are there: a small batch costs the
teacher nearly as long as a full one.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from demo_k2 import chat_prompts
from demo_k2.teacher import Teacher, prompt_text
from demo_k2.words import Draw

logger = logging.getLogger(__name__)
MAX_NEW_TOKENS = 72
TEMPERATURE, MIN_P = 0.5, 0.1
FOLLOWED_UP = 0.25  # the share of conversations that go on

Turns = list[tuple[str, str]]  # role, text
Asked = tuple[Turns, list[int]]  # with the prompt's token ids


def distil(
    file: Path, out: Path, budget_s: float, seed: int, num_questions: int, rows: int, device: str
) -> int:
    """Writes conversations to `out` for about `budget_s` seconds of asking; returns how many.

    num_questions: asked in a round, then sorted by length; rows: asked at once.
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    teacher = Teacher(file, device, dtype)
    began = time.monotonic()
    count, number = 0, 0
    waiting: dict[int, list[Asked]] = defaultdict(list)  # follow-ups, by the prompt's length

    def write(told: Iterable[Turns]) -> None:
        nonlocal count
        for turns in told:
            pairs = [[turns[i][1], turns[i + 1][1]] for i in range(0, len(turns), 2)]
            stream.write(json.dumps(pairs) + "\n")
            count += 1
        stream.flush()

    with out.open("w", encoding="utf-8") as stream:
        while time.monotonic() - began < budget_s:
            draw = Draw(f"teacher {seed} {number}")
            asked = [[("user", chat_prompts.question(draw))] for _ in range(num_questions)]
            for group in _of_one_length(teacher, asked, rows):
                number += 1
                finished, going_on = [], []
                for turns in _answered(teacher, group, seed + number):
                    (going_on if draw.maybe(FOLLOWED_UP) else finished).append(turns)
                write(finished)
                for turns, ids in _followed_up(teacher, going_on, draw):
                    waiting[len(ids)].append((turns, ids))
                for length in [
                    n for n, members in waiting.items() if len(members) >= max(4, rows // 16)
                ]:
                    write(_answered(teacher, waiting.pop(length), seed + number))
                if time.monotonic() - began >= budget_s:
                    break
        # Lengths with too few conversations for a batch of their own: as they were before.
        write(turns[:-1] for members in waiting.values() for turns, _ in members)
    logger.info("%d conversations in %.0f s", count, time.monotonic() - began)
    return count


def _of_one_length(
    teacher: Teacher, asked: Sequence[Turns], rows: int
) -> Iterator[Sequence[Asked]]:
    """Yields lists of up to `rows` whose prompts are of one length, the largest first."""
    prompts = teacher.encode([prompt_text(turns, chat_prompts.SYSTEM) for turns in asked])
    groups = defaultdict(list)
    for turns, ids in zip(asked, prompts, strict=True):
        groups[len(ids)].append((turns, ids))
    for members in sorted(groups.values(), key=len, reverse=True):
        for first in range(0, len(members), rows):
            yield members[first : first + rows]


def _followed_up(teacher: Teacher, answered: Sequence[Turns], draw: Draw) -> list[Asked]:
    """The conversations with another question, and the prompts that this makes."""
    asked: list[Turns] = [[*t, ("user", chat_prompts.follow_up(draw))] for t in answered]
    prompts = teacher.encode([prompt_text(turns, chat_prompts.SYSTEM) for turns in asked])
    return list(zip(asked, prompts, strict=True))


def _answered(teacher: Teacher, group: Sequence[Asked], seed: int) -> list[Turns]:
    answers = teacher.answers([ids for _, ids in group], MAX_NEW_TOKENS, TEMPERATURE, MIN_P, seed)
    answered = []
    for (turns, _), (answer, ended) in zip(group, answers, strict=True):
        text = chat_prompts.cleaned(answer, ended)
        if text is None or chat_prompts.is_beside_the_point(turns[-1][1], text):
            continue
        if not chat_prompts.repeats(text, turns[-2][1] if turns[1:] else ""):
            answered.append([*turns, ("assistant", text)])
    return answered

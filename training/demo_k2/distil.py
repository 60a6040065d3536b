"""Asks the teacher until its time is up; writes conversations, a JSON list of turns a line."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from pathlib import Path

import torch

from demo_k2 import chat_prompts
from demo_k2.teacher import Teacher, prompt_text
from demo_k2.words import Draw

logger = logging.getLogger(__name__)
MAX_NEW_TOKENS = 88
TEMPERATURE, MIN_P = 0.6, 0.08
FOLLOWED_UP = 0.2  # the share of conversations that go on

Turns = list[tuple[str, str]]  # role, text


def distil(
    file: Path, out: Path, budget_s: float, seed: int, num_questions: int, rows: int, device: str
) -> int:
    """Writes conversations to `out` for about `budget_s` seconds; returns how many.

    num_questions: asked in a round, then sorted by length; rows: asked at once.
    """
    began = time.monotonic()
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    teacher = Teacher(file, device, dtype)
    count, number = 0, 0
    with out.open("w", encoding="utf-8") as stream:
        while time.monotonic() - began < budget_s:
            draw = Draw(f"teacher {seed} {number}")
            asked = [[("user", chat_prompts.question(draw))] for _ in range(num_questions)]
            for group in _of_one_length(teacher, asked, rows):
                number += 1
                for turns in _told(teacher, group, seed + number):
                    stream.write(json.dumps(turns) + "\n")
                    count += 1
                stream.flush()
                if time.monotonic() - began >= budget_s:
                    break
    logger.info("%d conversations in %.0f s", count, time.monotonic() - began)
    return count


def _of_one_length(teacher: Teacher, asked: list[Turns], rows: int):
    """Yields lists of (turns, ids) whose ids are of one length, the largest lists first."""
    prompts = teacher.encode([prompt_text(turns, chat_prompts.SYSTEM) for turns in asked])
    groups = defaultdict(list)
    for turns, ids in zip(asked, prompts, strict=True):
        groups[len(ids)].append((turns, ids))
    for members in sorted(groups.values(), key=len, reverse=True):
        for first in range(0, len(members), rows):
            yield members[first : first + rows]


def _told(
    teacher: Teacher, group: list[tuple[Turns, list[int]]], seed: int
) -> list[list[list[str]]]:
    """The conversations [[question, answer], ...] that a group leads to."""
    draw = Draw(f"follow up {seed}")
    finished, going_on = [], []
    for turns in _answered(teacher, group, seed):
        if draw.maybe(FOLLOWED_UP):
            going_on.append([*turns, ("user", chat_prompts.follow_up(draw))])
        else:
            finished.append(turns)
    # Longer prompts have more lengths: those that are too few for a round of their own are left.
    for longer in _of_one_length(teacher, going_on, len(group)):
        if len(longer) >= max(1, len(going_on) // 60):
            finished += _answered(teacher, longer, seed)
    return [[[turns[i][1], turns[i + 1][1]] for i in range(0, len(turns), 2)] for turns in finished]


def _answered(teacher: Teacher, group: list[tuple[Turns, list[int]]], seed: int) -> list[Turns]:
    answers = teacher.answers([ids for _, ids in group], MAX_NEW_TOKENS, TEMPERATURE, MIN_P, seed)
    answered = []
    for (turns, _), (answer, ended) in zip(group, answers, strict=True):
        text = chat_prompts.cleaned(answer, ended)
        if text is not None and not chat_prompts.repeats(text, turns[-2][1] if turns[1:] else ""):
            answered.append([*turns, ("assistant", text)])
    return answered

"""Free conversations of several turns: something told, questions about the world, and what leans on
them.

Between a greeting and a goodbye stand parts in drawn order: what the user tells, facts with short
questions that go on from them, at times a question about hybrid-k2, and questions about what was
told before. Facts about hybrid-k2 come only where they are asked for.
"""

from __future__ import annotations

from demo_k2 import (
    chains,
    kinds,
    little_stories,
    moves,
    statements,
    tables,
    topics,
    word_tasks,
    world,
)
from demo_k2.knowledge import Exchange
from demo_k2.statements import Telling
from demo_k2.words import Draw

LONGEST = 9  # exchanges
_TO_GREET = ("pet", "sister", "brother", "friend", "relative", "partner", "baby")
_CHATTED = ("joke", "how", "like", "doing", "love", "my-favourite", "talk", "story", "name-of-pet")


def conversation(draw: Draw) -> list[Exchange]:
    """Three to nine exchanges that belong together."""
    made: list[Exchange] = []
    told: list[Telling] = []
    if draw.maybe(0.4):
        made.append(topics.of_topic(topics.smalltalk(), draw, ("greet", "greet", "how")))
    parts = draw.choices(["tell", "world", "about", "chat"], [40, 34, 20, 6], k=draw.randint(1, 3))
    parts.insert(draw.choice([0, 0, draw.randint(0, len(parts))]), "tell")
    for number, part in enumerate(parts):
        if number and draw.maybe(0.06):
            reply = moves.answered("change", draw)
            made += moves.made("change", draw, reply, "The user may ask.")
        made += _part(part, told, draw)
        if told and draw.maybe(0.6 if part != "tell" else 0.25):
            made += _looking_back(told, made, draw)
        if len(made) >= LONGEST - 2:
            break
    if len(made) < 3:
        made += _of_world(draw)
        made += _recalled(told, draw)
    if draw.maybe(0.15):
        made += moves.closing(draw)
    if draw.maybe(0.3):
        made += _goodbye(told, draw)
    return made[:LONGEST]


def _part(kind: str, told: list[Telling], draw: Draw) -> list[Exchange]:
    if kind == "tell":
        telling = statements.telling(draw, told)
        made = telling.exchanges(draw)
        if made:
            told.append(telling)
            made += _asked_back(telling, draw)
        return made
    if kind == "about":
        return topics.with_follow_up(topics.about(), draw)
    if kind == "chat":
        return [topics.of_topic(topics.smalltalk(), draw, _CHATTED)]
    return _of_world(draw)


def _of_world(draw: Draw) -> list[Exchange]:
    """A question about the world, a number or a list, and what leans on its answer."""
    most = draw.choice([1, 2, 3, 3, 4])
    kind = draw.random()
    for share, make in (
        (0.34, tables.exchanges),
        (0.51, chains.explanations),
        (0.61, lambda draw, most: chains.sums(draw, most + 1)),
        (0.67, chains.lists),
        (0.77, kinds.exchanges),
        (0.86, word_tasks.exchanges),
        (0.91, little_stories.exchanges),
    ):
        if kind < share:
            return make(draw, most)
    made = world.exchanges(draw)
    return made + (moves.about_answer(made[-1].answer, draw) if draw.maybe(0.3) else [])


def _asked_back(telling: Telling, draw: Draw) -> list[Exchange]:
    """At times the user asks whether the model has such a thing too."""
    label = telling.label(draw)
    if label is None or not draw.maybe(0.05):
        return []
    reply = moves.answered("and-you", draw, label)
    return moves.made("and-you", draw, reply, "I am a program and say so.")


def _looking_back(told: list[Telling], made: list[Exchange], draw: Draw) -> list[Exchange]:
    """What was told, what was not, what was asked, or back to it."""
    kind = draw.random()
    if kind < 0.68:
        return _recalled(told, draw)
    if kind < 0.78:
        found = statements.unknown(draw, told)
        return [found] if found else []
    label = told[-1].label(draw)
    if kind < 0.85 and len(told) == 1 and label:
        reply = moves.answered("talked-about", draw, label)
        return moves.made("talked-about", draw, reply, "I look at what was said.")
    if kind < 0.92:
        reply = moves.answered("asked-last", draw, made[-1].question)
        return moves.made("asked-last", draw, reply, "I repeat the user's words.")
    if label is None:
        return []
    named = label.replace("your ", "my ")
    reply = moves.answered("back-to", draw, label)
    back = moves.made("back-to", draw, reply, "The user comes back to it.", named)
    found = told[-1].recall(draw, told) if back and draw.maybe(0.7) else None
    return [*back, found] if found else back


def _recalled(told: list[Telling], draw: Draw) -> list[Exchange]:
    """One to three different questions about what was told."""
    made: list[Exchange] = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        telling = draw.choice(told) if told else None
        found = telling.recall(draw, told) if telling else None
        if found and not any(found.answer == each.answer for each in made):
            made.append(found)
    return made


def _goodbye(told: list[Telling], draw: Draw) -> list[Exchange]:
    """The last words, at times with a name that was told."""
    for telling in told:
        if "me" in telling.slots and draw.maybe(0.6):
            reply = moves.answered("bye-name", draw, telling.slots["me"])
            return moves.made("bye-name", draw, reply, "The user goes.")
        label = telling.label(draw)
        if telling.subject.name in _TO_GREET and label and draw.maybe(0.5):
            reply = moves.answered("bye-about", draw, label)
            return moves.made("bye-about", draw, reply, "The user goes.")
    return [topics.of_topic(topics.smalltalk(), draw, ("bye",))]

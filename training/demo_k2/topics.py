"""The topics of about.txt, smalltalk.txt and follow_ups.txt, and exchanges about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from demo_k2 import patterns
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw

# What can be asked whatever tools are declared: nothing that a tool could answer better.
ANY_TIME = (
    "greet",
    "how",
    "name",
    "thanks",
    "yes",
    "sad",
    "happy",
    "tired",
    "bored",
    "hungry",
    "like",
    "hobby",
    "hobby-tip",
    "pet",
    "live",
    "joke",
    "nonsense",
    "rude",
    "no",
    "sorry",
    "doing",
    "day",
    "talk",
    "repeat",
    "job",
    "love",
    "colour",
    "my-favourite",
    "code",
    "long-text",
    "advice",
    "future",
)


@cache
def about() -> dict[str, patterns.Topic]:
    return patterns.read("about.txt", "about_wordings.txt")


@cache
def smalltalk() -> dict[str, patterns.Topic]:
    return patterns.read("smalltalk.txt", "smalltalk_wordings.txt")


@cache
def follow_ups() -> dict[str, patterns.Topic]:
    """What can be said after any answer; most of it the model should admit not to know."""
    return patterns.read("follow_ups.txt")


def of_topic(topics: dict[str, patterns.Topic], draw: Draw, names: Sequence[str] = ()) -> Exchange:
    """An exchange of one of these topics, those in `names` if given."""
    topic = topics[draw.choice(names or list(topics))]
    question, answer = topic.exchange(draw)
    subject = topic.name.replace("-", " ")
    thoughts = [
        f"The user asks about {subject}. I know this.",
        f"This is about {subject}.",
        f"It is about {subject}. I answer in a sentence or two.",
    ]
    return Exchange(question, answer, draw.choice(thoughts))


def with_follow_up(topics: dict[str, patterns.Topic], draw: Draw) -> list[Exchange]:
    """An exchange of any of these topics, and perhaps one that refers to it."""
    topic = topics[draw.choice(list(topics))]
    made = [of_topic(topics, draw, (topic.name,))]
    if topic.follow_ups and draw.maybe(0.4):
        question, answer = topic.follow_up(draw)
        made.append(Exchange(question, answer, "This goes on from what was said."))
    return made

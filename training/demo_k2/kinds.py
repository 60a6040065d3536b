"""Things by kind: naming some, saying whether a thing is one, and going on from that.

Owns the conversations over kinds.txt. Answers are computed from it, so they are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from demo_k2.knowledge import Exchange
from demo_k2.words import DAYS, MONTHS, Draw, is_held_out, with_article

NUMBERS = ("one", "two", "three", "four", "five", "six")
_THOUGHT = "I think of what belongs to the kind."
# Kinds that hold each other's things, so that "no" would be wrong or hair-splitting.
_RELATED = ({"animal", "bird", "insect", "fish"}, {"fruit", "vegetable"}, {"flower", "tree"})


@dataclass(frozen=True)
class Kind:
    one: str
    several: str
    names: tuple[str, ...]  # nobody disputes them
    disputed: tuple[str, ...]

    def is_related(self, other: Kind) -> bool:
        return any({self.one, other.one} <= kinds for kinds in _RELATED)


@cache
def kinds() -> list[Kind]:
    made = []
    for line in Path(__file__).with_name("kinds.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        head, _, names = line.partition(": ")
        one, several = (word.replace("_", " ") for word in head.split())
        sure, _, disputed = names.partition(" | ")
        kept = tuple(name for name in sure.split() if not is_held_out(name))
        made.append(Kind(one, several, kept, tuple(disputed.split())))
    return made


def exchanges(draw: Draw, most: int) -> list[Exchange]:
    """One to `most`: lists of things and questions whether something is of a kind."""
    made = [_first(draw)]
    while len(made) < most and draw.maybe(0.75):
        made.append(_next(draw))
    return made


def _first(draw: Draw) -> Exchange:
    return draw.choice([_listed, _listed, _belongs, _calendar])(draw, "")


def _next(draw: Draw) -> Exchange:
    start = draw.choice(["And ", "Now ", "", "ok, ", "Next: "])
    return draw.choice([_listed, _listed, _belongs, _belongs, _calendar])(draw, start)


def _listed(draw: Draw, start: str) -> Exchange:
    kind = draw.choice(kinds())
    count = draw.randint(2, min(6, len(kind.names)))
    number = draw.choice([NUMBERS[count - 1], NUMBERS[count - 1], str(count)])
    asked = f"{number} {kind.several}"
    if start:
        asks = [asked, asked, f"name {asked}", f"{asked}, please", f"list {asked}"]
        end = "." if start != "And " else "?"
    else:
        verbs = [
            "List",
            "Name",
            "Tell me",
            "Give me",
            "I need",
            "Write down",
            "Can you name",
            "Say",
        ]
        asks = [f"{verb} {asked}" for verb in verbs]
        end = draw.choice([".", ".", "", "!", ", please."])
    question = start + draw.choice(asks)
    if question.startswith("Can"):
        end = "?"
    named = draw.sample(kind.names, count)
    return Exchange(_capital(question) + end, _sentence(named), _THOUGHT)


def _belongs(draw: Draw, start: str) -> Exchange:
    kind = home = draw.choice(kinds())
    thing = draw.choice(kind.names)
    if draw.maybe(0.5):
        others = [
            k for k in kinds() if thing not in k.names + k.disputed and not k.is_related(home)
        ]
        kind = draw.choice(others)
    it, a_kind = _said(thing, home), with_article(kind.one)
    question = draw.choice(
        [f"is {it} {a_kind}?", f"would you call {it} {a_kind}?", f"is {it} {a_kind} or not?"]
    )
    if home is kind:
        ending = draw.choice([".", ", like {other}."])
        other = draw.choice([name for name in kind.names if name != thing])
        answer = f"Yes, {it} is {a_kind}{ending.format(other=_said(other, kind))}"
    else:
        answer = f"No, {it} is {with_article(home.one)}, not {a_kind}."
    return Exchange(_capital(start + question), _capital(answer), f"{_capital(thing)}: {home.one}.")


_BARE = ("colours", "sports", "drinks", "languages", "metals", "jobs")


def _said(name: str, kind: Kind) -> str:
    return name if name[0].isupper() or kind.several in _BARE else with_article(name)


def _calendar(draw: Draw, start: str) -> Exchange:
    asked, named = draw.choice(
        [
            ("the days of the week", list(DAYS)),
            ("the days of the weekend", list(DAYS[5:])),
            ("the months", list(MONTHS)),
            ("the four seasons", ["spring", "summer", "autumn", "winter"]),
            ("the first three months", list(MONTHS[:3])),
            ("the last two months of the year", list(MONTHS[-2:])),
            ("the working days", list(DAYS[:5])),
            ("the colours of a traffic light", ["red", "yellow", "green"]),
            ("the vowels", list("aeiou")),
        ]
    )
    if start.startswith("And"):
        question = f"And {asked}?"
    else:
        verb = draw.choice(["list", "name", "what are", "tell me", "which are", "say"])
        question = _capital(f"{start}{verb} {asked}") + ("?" if verb[0] == "w" else ".")
    return Exchange(question, _sentence(named), "I say them in order.")


def _sentence(named: list[str]) -> str:
    if len(named) == 1:
        return _capital(named[0]) + "."
    return _capital(", ".join(named[:-1]) + f" and {named[-1]}.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

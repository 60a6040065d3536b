"""What people tell about themselves, what is said to it, and what is asked about it later.

statements.txt has a subject under each `#`, with these lines: `l:` what it is about, `g:` groups of
which one conversation has one subject, `s:` what is told, `a:` reactions, `z:` those for want of
better ones, `t:` a question back, its answer and the reaction, ` > ` between them; `f:` what
else is said of it `=>` the reply, `c:` corrections, `r:` what is asked later. A line is used where
the slots that it needs are known by then, so replies take up what was said and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

from demo_k2 import moves, patterns
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw

_MARK = "{?|?|?|}"  # behind what is asked later
_VAGUE = "did I"  # "which city did I say?" is clear only where one was said


@dataclass
class Subject:
    """The lines of a subject by their mark, split where they have several parts."""

    name: str
    label: str = ""
    groups: frozenset[str] = frozenset()
    told: list[str] = field(default_factory=list)
    reactions: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    questions_back: list[list[str]] = field(default_factory=list)
    further: list[list[str]] = field(default_factory=list)
    corrections: list[list[str]] = field(default_factory=list)
    recalls: list[list[str]] = field(default_factory=list)


@cache
def subjects() -> dict[str, Subject]:
    """All of statements.txt by name."""
    found: dict[str, Subject] = {}
    for line in patterns.lines("statements.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "#":
            subject = found[rest] = Subject(rest, groups=frozenset([rest]))
        elif mark == "l:":
            subject.label = rest
        elif mark == "g:":
            subject.groups |= set(rest.split())
        elif mark in ("s:", "a:", "z:"):
            kind = {"s:": subject.told, "a:": subject.reactions, "z:": subject.fallbacks}
            kind[mark].append(rest)
        else:
            {
                "t:": subject.questions_back,
                "f:": subject.further,
                "c:": subject.corrections,
                "r:": subject.recalls,
            }[mark].append(rest.split(" > " if mark == "t:" else " => "))
    return found


class Telling:
    """One subject of one conversation: what was said of it so far."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.slots: dict[str, str] = {}
        self._asked: list[list[str]] = []  # questions of either side, none of which comes twice

    def label(self, draw: Draw) -> str | None:
        """What it is about, as the assistant says it."""
        if not self._knows(self.subject.label):
            return None
        return patterns.filled(self.subject.label, draw, self.slots)

    def exchanges(self, draw: Draw) -> list[Exchange]:
        """The statement and the reply, often a question back and its answer, at times more."""
        subject = self.subject
        question = patterns.said(subject.told, draw, self.slots)
        if question is None:  # all of its wordings are held out
            return []
        made, asked_back = [], None
        reply = self._reaction(draw)
        if not reply or ("?" not in reply and draw.maybe(0.6)):
            reply, asked_back = self._asking(reply, draw)
        made.append(Exchange(question, reply, self._thought(draw)))
        for _ in range(2):
            if asked_back is None or draw.maybe(0.2):  # people do not always answer
                break
            _, answers, reaction = asked_back
            answer = patterns.said([answers], draw, self.slots)
            if answer is None:
                break
            reply = self._take_up(reaction, draw)
            asked_back = None
            if draw.maybe(0.15):
                reply, asked_back = self._asking(reply, draw)
            made.append(Exchange(answer, reply, "That answers my question. I take it up."))
        if subject.further and draw.maybe(0.4):
            made += self._more(subject.further, draw)
        if subject.corrections and draw.maybe(0.25):
            made += self._corrected(draw)
        return made

    def recall(self, draw: Draw, others: Collection[Telling] = ()) -> Exchange | None:
        """A question about what was said here, or None where there is none that is clear.

        others: of the same conversation; "what did I say?" is asked of one of a kind only.
        """
        elsewhere = {name for other in others if other is not self for name in other.slots}
        known = [
            line for line in self.subject.recalls if self._knows(*line) and line not in self._asked
        ]
        draw.shuffle(known)
        for asked, answer in known:
            wording = patterns.chosen(asked, draw)
            if _VAGUE in wording and patterns.slots_of(answer) & elsewhere:
                continue
            question = patterns.said([wording + _MARK], draw, self.slots)
            if question is None:
                continue
            self._asked.append([asked, answer])
            text = patterns.answered([answer], draw, self.slots)
            return Exchange(question, text, f"I look at what was said: {text}")
        return None

    def _knows(self, *parts: str) -> bool:
        """Whether all slots of these texts are known."""
        return all(patterns.slots_of(part) <= self.slots.keys() for part in parts)

    def _reaction(self, draw: Draw) -> str:
        """One that takes up what was said; empty where there is none."""
        known = [line for line in self.subject.reactions if self._knows(line)]
        known = known or [line for line in self.subject.fallbacks if self._knows(line)]
        if known and draw.maybe(0.5):  # what takes up most of it
            most = max(len(patterns.slots_of(line)) for line in known)
            known = [line for line in known if len(patterns.slots_of(line)) == most]
        return patterns.answered([draw.choice(known)], draw, self.slots) if known else ""

    def _take_up(self, reaction: str, draw: Draw) -> str:
        """A reaction whose alternatives may need slots that are not known."""
        for _ in range(20):
            text = patterns.chosen(reaction, draw)
            if self._knows(text):
                return patterns.answered([text], draw, self.slots)
        return "I see. Thank you for telling me."

    def _asking(self, reply: str, draw: Draw) -> tuple[str, list[str] | None]:
        """The reply with a question back whose answer is not known yet, if there is one."""
        for line in draw.sample(self.subject.questions_back, len(self.subject.questions_back)):
            asked, answers, _ = line
            text = patterns.chosen(asked, draw)
            new = patterns.slots_of(answers)
            is_new = line not in self._asked and not (new and new <= self.slots.keys())
            if is_new and self._knows(text):
                self._asked.append(line)
                asked = patterns.answered([text], draw, self.slots)
                return f"{reply} {asked}".strip(), line
        return reply, None

    def _more(self, lines: list[list[str]], draw: Draw) -> list[Exchange]:
        asked, reply = draw.choice(lines)
        if "?" not in asked and patterns.slots_of(asked) and self._knows(asked):
            return []  # that was said before
        question = patterns.said([asked], draw, self.slots)
        if question is None:
            return []
        text = patterns.answered([reply], draw, self.slots)
        return [Exchange(question, text, self._thought(draw))]

    def _corrected(self, draw: Draw) -> list[Exchange]:
        """A correction, after which the new word holds."""
        asked, reply = draw.choice(self.subject.corrections)
        new = [name for name in patterns.slots_of(asked) if name[-1] == "2"]
        if not self._knows(*(f"<{name[:-1]}>" for name in new)):
            return []
        question = patterns.said([asked], draw, self.slots)
        if question is None or any(self.slots[name] == self.slots[name[:-1]] for name in new):
            return []
        made = [Exchange(question, patterns.answered([reply], draw, self.slots), "A correction.")]
        for name in new:
            self.slots[name[:-1]] = self.slots.pop(name)
        return made

    def _thought(self, draw: Draw) -> str:
        label = (self.label(draw) or "something").replace("your ", "the user's ")
        return draw.choice(
            [
                f"The user tells me about {label}. I take it up.",
                f"This is about {label}. I react to it in a sentence.",
                "This is about the user. I react to it.",
            ]
        )


def telling(draw: Draw, before: Collection[Telling] = ()) -> Telling:
    """A subject that can be told from those before it in the conversation."""
    taken = {group for each in before for group in each.subject.groups}
    free = [subject for subject in subjects().values() if not subject.groups & taken]
    return Telling(draw.choice(free))


def unknown(draw: Draw, before: Collection[Telling]) -> Exchange | None:
    """A question about something that the user did not tell."""
    taken = {group for each in before for group in each.subject.groups}
    subject = draw.choice([s for s in subjects().values() if not s.groups & taken])
    asked = [line[0] for line in subject.recalls if not patterns.slots_of(line[0])]
    wording = patterns.chosen(draw.choice(asked), draw) if asked else _VAGUE
    if _VAGUE in wording:  # anything could be meant
        return None
    question = patterns.said([wording + _MARK], draw, {})
    if question is None:
        return None
    return Exchange(question, moves.answered("unknown", draw), "The user did not tell me that.")

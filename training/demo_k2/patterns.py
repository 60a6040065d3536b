"""Questions and answers written as patterns in the .txt files beside this one.

A topic: `# name`, `k:` lines (what a right answer says, for evaluation), `q:` and `a:` lines, and
`f: question => answer` lines, which make sense right after one of its questions.
Words for slots are drawn from slots.txt, words.py and, where nothing else fits, names.
`v: n: w: c: p:` lines hold phrases, ` / ` between them, which frames.txt makes questions of: a verb
and its object, a noun, an indirect question, a claim, a problem.
`{a|b|}` is one of its alternatives, which may nest; `<slot>` is a drawn word, the same in question
and answer. A question that the checksum holds out is evaluated and never trained on, and one that
stands in a file of questions written for judging is never drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from demo_k2 import words
from demo_k2.typing_slips import as_people_type
from demo_k2.words import Draw, is_held_out

_BRACES = re.compile(r"([{}|])")
_SLOT = re.compile(r"(?:\b([Aa])n? )?<(\w+)>")
_VOWEL = re.compile(r"[aeio]|u[mn](?!i)", re.I)
_SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_PRIVATE = 0xE000  # characters that no slip touches
_OPENERS = (
    "",
    "",
    "",
    "",
    "",
    "Hi, ",
    "Hello, ",
    "Hey, ",
    "Please tell me: ",
    "Tell me, ",
    "I would like to know: ",
    "A question: ",
    "Sorry, ",
    "Ok, ",
    "And ",
    "So, ",
    "",
    "",
    "",
    "Quick question: ",
    "I have a question. ",
    "One more thing: ",
    "Excuse me, ",
    "Could you tell me: ",
    "I am new here. ",
    "Well, ",
)
_ENDINGS = (
    " Thanks!",
    " Any idea?",
    " Please be brief.",
    " I am not sure.",
    " I could not find it.",
)
_Parts = list[Any]  # texts and lists of alternatives, which are such lists again
FRAMED = "vnwcp"  # marks of phrases
JUDGING = ("asked.txt", "asked_again.txt")  # questions that are never trained on
_HOW = re.compile(r"how (?:do|can|could) I (.+)\?")
_WAYS = (
    "how to <1>?",
    "{tell|show} me how to <1>.",
    "I {want to|would like to|need to|have to} <1>. {How?|How do I do that?|Can you help?}",
    "what {do I do|do I type|is the way} to <1>?",
    "{is there|do you know} a way to <1>?",
    "{do you know|can you explain|can you tell me} how to <1>?",
    "what is the {best|right|easiest} way to <1>?",
)
_LISTS = {
    "noun": words.NOUNS,
    "food": words.FOODS,
    "colour": words.COLOURS,
    "animal": words.ANIMALS,
    "hobby": words.HOBBIES,
    "adjective": words.ADJECTIVES,
    "day": words.DAYS,
    "month": words.MONTHS,
    "language": words.LANGUAGES,
}


@dataclass
class Topic:
    """keys: alternatives joined by `|`; a right answer holds one of each."""

    name: str
    keys: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    phrases: list[tuple[str, str]] = field(default_factory=list)  # mark, phrase

    def exchange(self, draw: Draw) -> tuple[str, str]:
        """A question and its answer, their slots filled alike."""
        slots: dict[str, str] = {}
        question = self.question(draw, slots)
        answer = fill(draw.choice(self.answers), draw, slots)
        return question, answer[0].upper() + answer[1:]

    def follow_up(self, draw: Draw) -> tuple[str, str]:
        """A question that refers to what was said, and its answer."""
        slots: dict[str, str] = {}
        question, answer = draw.choice(self.follow_ups).split(" => ")
        question, answer = fill(question, draw, slots), fill(answer, draw, slots)
        return as_typed(question, draw), answer[0].upper() + answer[1:]

    def question(self, draw: Draw, slots: dict[str, str] | None = None) -> str:
        """A question of the draw's side, as people type it."""
        bound: dict[str, str] = {}

        def make() -> str:
            bound.clear()
            which = draw.randrange(len(self.questions) + len(self.phrases))
            if which < len(self.questions):
                return reworded(fill(self.questions[which], draw, bound), draw)
            mark, phrase = self.phrases[which - len(self.questions)]
            return fill(framed(mark, phrase, draw), draw, bound)

        while True:
            text = as_typed(draw.mine(make), draw)
            if not draw.held_out:
                text = among_others(text, draw) if self.phrases else text
                # What a slot holds is to be copied, so nothing may happen to it.
                text = text if bound else as_people_type(text, draw)
            if bare(text) not in judged():
                break
        if slots is not None:
            slots.update(bound)
        return text


def read(*names: str) -> dict[str, Topic]:
    """The topics of some files, by name; a topic may stand in several of them."""
    topics: dict[str, Topic] = {}
    topic = Topic("")
    for name in names:
        for line in lines(name):
            mark, _, rest = line.partition(" ")
            if mark == "#":
                topic = topics.setdefault(rest, Topic(rest))
            elif mark.rstrip(":") in FRAMED:
                topic.phrases += [(mark[0], phrase.strip()) for phrase in rest.split(" / ")]
            else:
                {
                    "k:": topic.keys,
                    "q:": topic.questions,
                    "a:": topic.answers,
                    "f:": topic.follow_ups,
                }[mark].append(rest)
    return topics


def lines(name: str) -> list[str]:
    """The lines of a file beside this one that are not empty."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


@cache
def frames() -> dict[str, list[str]]:
    """What turns a phrase of a mark, `<1>`, into a question."""
    return {mark: topic.questions for mark, topic in read("frames.txt").items()}


def framed(mark: str, phrase: str, draw: Draw) -> str:
    """A phrase as a question's pattern."""
    return draw.choice(frames()[mark]).replace("<1>", phrase)


def among_others(question: str, draw: Draw) -> str:
    """At times with a sentence before or behind it that has nothing to do with the answer."""
    kind = draw.random()
    if kind < 0.15:
        return f"{chosen(draw.choice(frames()['before']), draw)} {question}"
    if kind < 0.22:
        return f"{question} {chosen(draw.choice(frames()['after']), draw)}"
    return question


def written(name: str) -> list[list[str]]:
    """Topic, question and what its answer must hold too, of a file that only judges."""
    beside = Path(__file__).with_name(name)
    return [line.split(" | ") for line in lines(name)] if beside.is_file() else []


@cache
def judged() -> frozenset[str]:
    """The questions of all such files."""
    return frozenset(bare(question) for name in JUDGING for _, question, *_ in written(name))


def bare(question: str) -> str:
    """Its letters and digits."""
    return re.sub(r"[^a-z0-9]", "", question.lower())


def fill(pattern: str, draw: Draw, slots: dict[str, str]) -> str:
    """Chooses among alternatives, then fills the slots; new ones are noted in `slots`."""
    return filled(chosen(pattern, draw), draw, slots)


def filled(text: str, draw: Draw, slots: dict[str, str], shown: Callable[[str], str] = str) -> str:
    """The text with its slots filled, `a` or `an` before them; new ones are noted in `slots`.

    shown: what stands for a slot's word in the text.
    """

    def slot(found: re.Match[str]) -> str:
        article, name = found[1], found[2]
        if name not in slots:
            slots[name] = _drawn(name.rstrip("0123456789"), draw)
        value = slots[name]
        if article is None:
            return shown(value)
        return f"{article}{'n' if _VOWEL.match(value) else ''} {shown(value)}"

    return _SLOT.sub(slot, text)


@lru_cache(maxsize=60_000)
def slots_of(pattern: str) -> frozenset[str]:
    """The names of all slots that a pattern may need."""
    return frozenset(name for _, name in _SLOT.findall(pattern))


def said(choices: Sequence[str], draw: Draw, slots: dict[str, str]) -> str | None:
    """What a user says by one of these patterns, as people type it; new slots are noted.

    None where no wording is for training. Held-out wordings are taken where there are any.
    """
    for _ in range(12):
        pattern, bound = chosen(draw.choice(choices), draw), dict(slots)
        text = filled(pattern, draw, bound)
        if is_held_out(text) == draw.held_out and bare(text) not in judged():
            break
    else:
        if not draw.held_out:
            return None
    slots.update(bound)
    if draw.held_out:
        return as_typed(text, draw, is_first=False)
    kept: list[str] = []

    def hidden(value: str) -> str:
        kept.append(value)
        return chr(_PRIVATE + len(kept) - 1)

    # What a slot holds is to be copied, so nothing may happen to it.
    text = filled(pattern, draw, bound, hidden)
    text = as_people_type(as_typed(text, draw, is_first=False), draw, synonyms=False)
    for number, value in enumerate(kept, _PRIVATE):
        text = text.replace(chr(number), value)
    return text.strip()


def answered(choices: Sequence[str], draw: Draw, slots: dict[str, str]) -> str:
    """An answer by one of these patterns, whose sentences begin with capitals."""
    text = fill(draw.choice(choices), draw, slots)
    return _SENTENCE.sub(lambda found: found[0].upper(), text)


def chosen(pattern: str, draw: Draw) -> str:
    """The pattern with one of each alternatives; slots stay."""
    return _spoken(_parsed(pattern), draw)


def _spoken(parts: _Parts, draw: Draw) -> str:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    texts = [part if isinstance(part, str) else _spoken(draw.choice(part), draw) for part in parts]
    return "".join(texts)


@lru_cache(maxsize=60_000)  # of phrases in frames there are more
def _parsed(pattern: str) -> _Parts:
    """Texts, and between them the alternatives, each of which is made of such parts."""
    sequences: list[list] = [[]]  # the open ones, each within an alternative of the one before
    alternatives: list[list[list]] = []
    for part in _BRACES.split(pattern):
        if part == "{":
            alternatives.append([])
            sequences.append([])
        elif part == "|" and alternatives:
            alternatives[-1].append(sequences.pop())
            sequences.append([])
        elif part == "}" and alternatives:
            alternatives[-1].append(sequences.pop())
            sequences[-1].append(alternatives.pop())
        elif part:
            sequences[-1].append(part)
    if alternatives:
        raise ValueError(f"a brace is not closed: {pattern}")
    return sequences[0]


_MADE: dict[str, Callable[[Draw], str]] = {
    "number": lambda draw: str(draw.number(2, 99)),
    "age": lambda draw: str(draw.number(18, 90)),
    "years": lambda draw: str(draw.randint(2, 12)),
    "price": lambda draw: str(draw.number(5, 900)),
    "phrase": Draw.phrase,
    "city": Draw.city,
    "clock": Draw.clock,
    "early": lambda draw: f"{draw.randint(4, 9)}:{draw.choice(['00', '15', '30', '45'])}",
    "company": lambda draw: draw.mine(lambda: draw.invented(2)),
    "team": lambda draw: (
        f"{draw.mine(lambda: draw.invented(2))} {draw.choice(['United', 'Rovers', 'Stars'])}"
    ),
    "title": lambda draw: f"The {draw.choice(words.ADJECTIVES)} {draw.choice(words.NOUNS)}".title(),
}
_OTHER_WORD = 0.12  # the share of open kinds' words that are put together from tokens


def _drawn(kind: str, draw: Draw) -> str:
    if kind in _LISTS:
        return draw.choice(_LISTS[kind])
    if kind in _MADE:
        return _MADE[kind](draw)
    if kind not in _listed():
        return draw.name()
    is_open, members = _listed()[kind]
    value = draw.choice(members)
    if is_open and draw.pieces and draw.maybe(_OTHER_WORD):
        article = "a " if value.startswith(("a ", "an ")) else ""
        other = draw.pieced().lower()
        return f"an {other}" if article and _VOWEL.match(other) else article + other
    return value


@cache
def _listed() -> dict[str, tuple[bool, list[str]]]:
    """The kinds of slots.txt; whether they are open: a `*` says that anything can be one."""
    kinds = (line.split(": ", 1) for line in lines("slots.txt"))
    return {name.lstrip("*"): (name[0] == "*", members.split(" / ")) for name, members in kinds}


def reworded(question: str, draw: Draw) -> str:
    """At times another way to ask how something is done."""
    found = _HOW.fullmatch(question)
    if found is None or draw.maybe(0.6):
        return question
    return chosen(draw.choice(_WAYS), draw).replace("<1>", found[1])


def as_typed(text: str, draw: Draw, is_first: bool = True) -> str:
    """With an opener, a capital and a mark, or without: people type all of these.

    is_first: whether it may begin a conversation, so that it can have an opener.
    """
    opener = ""
    if is_first and text.endswith("?"):
        opener = draw.choice(_OPENERS) if draw.maybe(0.5) else ""
        text += draw.choice(_ENDINGS) if draw.maybe(0.06) else ""
    if opener.endswith(". ") or not opener:
        text = text[0].upper() + text[1:]
    text = opener + text
    style = draw.random()
    if style < 0.12:
        text = text.rstrip("?.!") or text  # "..." is nonsense that people type
    if style < 0.08 or 0.12 < style < 0.2:
        text = text[0].lower() + text[1:]
    return text

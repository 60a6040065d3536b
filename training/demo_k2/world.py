"""What everyday things are, and why and how common things happen: short answers that are right.

world.txt holds them: `n: a thing | what it is | more about it` and `w: an indirect question / the
same in other words | answer`. A teacher of 135 million weights is fluent and often wrong; these
answers were written by hand.
"""

from __future__ import annotations

import re
from functools import cache

from demo_k2 import patterns
from demo_k2.knowledge import Exchange
from demo_k2.typing_slips import as_people_type
from demo_k2.words import Draw

_WHAT = (
    "what {is|exactly is} <1>?",
    "what is <1>?",
    "what is <1>?",
    "{explain|define|describe} <1>{.| to me.| in simple words.| in one sentence.|, please.}",
    "{tell|teach} me {about|what you know about|something about} <1>{.|, please.}",
    "{can|could} you {explain|tell me|say} what <1> is?",
    "{I want to know|I would like to know|do you know|I do not know|I wonder|tell me} what <1> is.",
    "what do you know about <1>?",
    "what does {the word |}<2> mean?",
    "{a|an easy|a quick} question: what is <1>?",
    "{my son asked me|my child asks|somebody asked me} what <1> is.",
    "let us talk about <1>. what is it?",
    "<1>?",
)
_MORE = (
    "{tell me more|and what else|what else do you know about it|say more|more, please}{.|}",
    "{can you tell me|do you know|is there} {more|anything else} about it?",
    "{interesting|ok|nice|I see}{, tell me more|. And what else|, go on}{.|}",
)
_ASKED = (
    "{tell me|explain|please tell me|can you explain|please explain} <1>{.|, please.}",
    "{do you know|can you tell me|could you tell me|any idea|may I ask|do you remember} <1>?",
    "{I want to know|I wonder|I'd like to know|I always wanted to know|I was wondering} <1>.",
    "{my child|my son|my daughter|a friend} {asks|asked me|wants to know} <1>.",
)
_COUNT = re.compile(r"how many (.+) there are|how many (.+?) ((?:a|an) .+) has")
_BE = re.compile(r"(\w+(?: (?:far away|fast))?) (.+?) (is|are|was|can|should)\b ?(.*)")
_MANY = re.compile(r"(why|how|where|what) (we|I|people|\w+s|fish|polar bears) (.*)")
_ONE = re.compile(r"(why|how|where|what) ((?:a|an|the) \w+|\w+) (\w+)s( .*)?")
_AS_THEY_ARE = ("who wrote", "who painted", "who was", "who invented", "which ", "what happens")


def direct(clause: str) -> str | None:
    """The question that an indirect one stands for, or None where this does not know it.

    >>> direct("why the sky is blue")
    'why is the sky blue?'
    """
    if clause.startswith(("how to ", "what to ")):
        word, _, rest = clause.partition(" to ")
        return f"{word} {'do' if word == 'how' else 'should'} I {rest}?"
    if clause.startswith((*_AS_THEY_ARE, "what makes")):
        return f"{clause}?"
    if found := _COUNT.fullmatch(clause):
        there, what, owner = found.groups()
        return f"how many {there} are there?" if there else f"how many {what} does {owner} have?"
    if found := _BE.fullmatch(clause):
        word, subject, verb, rest = found.groups()
        return f"{word} {verb} {subject} {rest}".rstrip() + "?"
    if found := _MANY.fullmatch(clause):
        word, subject, rest = found.groups()
        return f"{word} do {subject} {rest}?"
    if found := _ONE.fullmatch(clause):
        word, subject, verb, rest = found.groups()
        return f"{word} does {subject} {verb}{rest or ''}?"
    return None


@cache
def _things() -> list[list[str]]:
    return [line[3:].split(" | ") for line in patterns.lines("world.txt") if line[0] == "n"]


@cache
def _reasons() -> list[tuple[list[str], str]]:
    entries = (line[3:].split(" | ") for line in patterns.lines("world.txt") if line[0] == "w")
    return [(clauses.split(" / "), answer) for clauses, answer in entries]


_DEFINED = re.compile(
    r"(?:what|whats|what exactly) (?:is|are)|explain|describe|define|(?:can you |please )?tell me "
    r"(?:something |a fact |a fun fact |one interesting thing |a bit |a little )?about"
)


def answers(question: str) -> bool:
    """Whether this question has an answer here, so that no other one is to be learnt."""
    said = re.sub(r"[^a-z ]", "", question.lower())
    return patterns.bare(said) in _asked_directly() or bool(
        (found := _DEFINED.match(said)) and said[found.end() :].strip() in _names()
    )


@cache
def _names() -> frozenset[str]:
    """Of all things, with and without an article, one and many."""
    names = {thing.lower() for thing, *_ in _things()}
    bare = {re.sub(r"^(?:an?|the) ", "", name) for name in names}
    ends = ("", " exactly", " to a child", " in simple words", " in one sentence")
    return frozenset(
        name + end for name in names | bare | {f"{name}s" for name in bare} for end in ends
    )


@cache
def _asked_directly() -> frozenset[str]:
    clauses = (clause for clauses, _ in _reasons() for clause in clauses)
    return frozenset(patterns.bare(direct(clause) or clause) for clause in clauses)


def exchanges(draw: Draw) -> list[Exchange]:
    """A question about the world and its answer, at times with one that asks for more."""
    if draw.maybe(0.3):
        clauses, answer = draw.choice(_reasons())
        return [Exchange(_question(draw, lambda: _of_clause(clauses, draw)), answer, "I know it.")]
    thing, what, more = draw.choice(_things())
    bare = re.sub(r"^(?:an?|the) ", "", thing)
    asked = _question(
        draw,
        lambda: (
            patterns.chosen(draw.choice(_WHAT), draw).replace("<1>", thing).replace("<2>", bare)
        ),
    )
    name = thing[0].upper() + thing[1:]
    said = f"{name} is {what}."
    thought = f"The user asks what {thing} is."
    if draw.maybe(0.5):
        return [Exchange(asked, f"{said} {more}.", thought)]
    made = [Exchange(asked, said, thought)]
    if draw.maybe(0.6):
        follow_up = _question(draw, lambda: patterns.chosen(draw.choice(_MORE), draw))
        made.append(Exchange(follow_up, f"{more}.", f"More about {thing}."))
    return made


def _of_clause(clauses: list[str], draw: Draw) -> str:
    clause = draw.choice(clauses)
    question = direct(clause) if draw.maybe(0.6) else None
    return question or patterns.chosen(draw.choice(_ASKED), draw).replace("<1>", clause)


def _question(draw: Draw, make) -> str:
    text = patterns.as_typed(draw.mine(make), draw)
    return text if draw.held_out else as_people_type(text, draw)

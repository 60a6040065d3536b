"""Questions that go on with what was just said: with a number, with a list, with an explanation.

Each function draws a first exchange and a few that lean on it; every later answer is computed from
the earlier ones.
"""

from __future__ import annotations

from functools import cache

from demo_k2 import knowledge, moves, patterns, puzzles, words
from demo_k2.knowledge import COUNTS, Exchange
from demo_k2.words import Draw

_LARGEST = 999  # what the puzzles add and subtract up to
_BEGAN = "We began with"
_PLACES = ("first", "second", "third", "fourth", "fifth")


def sums(draw: Draw, most: int = 5) -> list[Exchange]:
    """A sum or a difference and what is done with its result: take away 5, double that."""
    a, b = draw.number(2, 99), draw.number(2, 60)
    kind = draw.choice(["sum", "sum", "story", "minus", "times"])
    if kind == "minus":
        a, b = max(a, b), min(a, b)
        value, thought, sign = a - b, puzzles.subtracted(a, b), "-"
    elif kind == "times":
        a, b = draw.randint(2, 12), draw.randint(2, 9)
        value, thought, sign = a * b, f"{a} x {b} = {a * b}.", "x"
    else:
        value, thought, sign = a + b, puzzles.added(a, b), "+"
    food = draw.choice(words.FOODS)
    answer = f"You have {value} {food}." if kind == "story" else f"{a} {sign} {b} = {value}."
    made = moves.made(kind, draw, answer, thought, str(a), str(b), food)
    values = [value]
    while made and len(made) < most and draw.maybe(0.72):
        made += _gone_on(a, values, draw)
        if made[-1].answer.startswith(_BEGAN):  # "double that" would not be clear
            break
    return made


def _gone_on(first: int, values: list[int], draw: Draw) -> list[Exchange]:
    """One step from the last of these values; a new one is added to them."""
    value = values[-1]
    number = draw.number(2, 30)
    kind = draw.choice(
        ["take-away", "take-away", "and-plus", "and-plus", "double", "half", "and-times", "parity",
         "than", "undo", "first-number", "last-result"]
    )  # fmt: skip
    if kind == "take-away" and value > number:
        return _step(kind, f"{value} - {number}", value - number, number, values, draw,
                     puzzles.subtracted(value, number))  # fmt: skip
    if kind == "and-plus" and value + number <= _LARGEST:
        return _step(kind, f"{value} + {number}", value + number, number, values, draw,
                     puzzles.added(value, number))  # fmt: skip
    if kind == "double" and value * 2 <= _LARGEST:
        thought = f"Twice {value} is {value} + {value}. {puzzles.added(value, value)}"
        return _step(kind, f"{value} x 2", value * 2, 2, values, draw, thought)
    if kind == "half" and value % 2 == 0 and value:
        return _step(kind, f"{value} / 2", value // 2, 2, values, draw, halved(value))
    if kind == "and-times" and value <= 12:
        number = draw.randint(2, 9)
        return _step(kind, f"{value} x {number}", value * number, number, values, draw, "")
    if kind == "parity":
        is_odd = "odd" if value % 2 else "even"
        return moves.made(kind, draw, f"{value} is {is_odd}.", f"It ends in {value % 10}.")
    if kind == "than" and number != value:
        word = "more" if value > number else "less"
        reply = f"{'Yes' if value > number else 'No'}, {value} is {word} than {number}."
        return moves.made(kind, draw, reply, puzzles.compared(value, number), "", str(number))
    if kind == "undo" and len(values) > 1:
        made = moves.made(kind, draw, f"It was {values[-2]} before.", "The number before that.")
        if made:
            values.pop()
        return made
    if kind == "first-number":
        return moves.made(kind, draw, f"{_BEGAN} {first}.", "I look at the first question.")
    return moves.made("last-result", draw, f"The result is {value}.", "I look at the last answer.")


def _step(
    kind: str, said: str, value: int, number: int, values: list[int], draw: Draw, thought: str
) -> list[Exchange]:
    result = f"{said} = {value}."
    made = moves.made(kind, draw, result, thought or result, "", str(number))
    if made:
        values.append(value)
    return made


def halved(value: int) -> str:
    """Hundreds, tens and ones apart; value is even."""
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(value)))]
    halves = [f"{part} / 2 = {part / 2:g}" for part in reversed(parts) if part]
    total = " + ".join(f"{part / 2:g}" for part in reversed(parts) if part)
    return f"{'. '.join(halves)}. {total} = {value // 2}."


def lists(draw: Draw, most: int = 4) -> list[Exchange]:
    """A few things of a kind, and then: one more, the second one, how many, without the first."""
    what = draw.choice([name for name in knowledge.LISTS if name != "foods"])
    items = knowledge.LISTS[what]
    count, start = draw.randint(2, 5), draw.randrange(len(items))
    named = [items[(start + i) % len(items)] for i in range(count)]
    number = draw.choice([COUNTS[count - 1], str(count)])
    made = moves.made("name-some", draw, _listed(named), f"I name {number}.", number, what)
    after = start + count
    while made and len(made) < most and draw.maybe(0.7):
        kind = draw.choice(
            ["one-more", "one-more", "place-in-list", "how-many-are-these", "leave-out",
             "by-letters", "longest-word", "was-that-in"]
        )  # fmt: skip
        place = draw.randrange(len(named))
        word = _PLACES[place] if place < len(_PLACES) else "last"
        if kind == "one-more" and len(named) < 7:
            item = items[after % len(items)]
            new = moves.made(kind, draw, f"{item[0].upper() + item[1:]}.", "Another one.")
            if new:
                named.append(item)
                after += 1
            made += new
        elif kind == "place-in-list" and word != "last":
            reply = f"The {word} one was {named[place]}."
            made += moves.made(kind, draw, reply, f"Number {place + 1} is {named[place]}.", word)
        elif kind == "how-many-are-these":
            made += moves.made(kind, draw, f"These are {len(named)}.", _numbered(named))
        elif kind == "leave-out" and len(named) > 2 and word != "last":
            left = [item for i, item in enumerate(named) if i != place]
            new = moves.made(kind, draw, _listed(left), f"I leave out {named[place]}.", word)
            named = left if new else named
            made += new
        elif kind == "by-letters" and named != sorted(named, key=str.lower):
            ordered = sorted(named, key=str.lower)
            new = moves.made(kind, draw, _listed(ordered), "I sort by the first letters.")
            named = ordered if new else named
            made += new
        elif kind == "longest-word" and _only_longest(named):
            longest = max(named, key=len)
            reply = f"{longest[0].upper() + longest[1:]} is the longest: {len(longest)} letters."
            made += moves.made(kind, draw, reply, " ".join(f"{n}: {len(n)}." for n in named))
        elif kind == "was-that-in":
            other = draw.choice(items)
            reply = f"{'Yes' if other in named else 'No'}: {_listed(named)}"
            made += moves.made(kind, draw, reply, "I look at the list.", other)
    return made


def _listed(items: list[str]) -> str:
    text = ", ".join(items[:-1]) + " and " + items[-1]
    return text[0].upper() + text[1:] + "."


def _numbered(items: list[str]) -> str:
    return " ".join(f"{number}: {item}." for number, item in enumerate(items, 1))


def _only_longest(items: list[str]) -> bool:
    lengths = sorted(len(item) for item in items)
    return lengths[-1] > lengths[-2] and all(item.isalpha() for item in items)


_MARKS = {"s": "shorter", "x": "simpler", "w": "why", "e": "example", "m": "more"}


@cache
def explained() -> list[dict[str, list[str]]]:
    """Entries of explained.txt: the lines of each by their mark."""
    found: list[dict[str, list[str]]] = []
    for line in patterns.lines("explained.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "#":
            found.append({"#": [rest]})
        else:
            found[-1].setdefault(mark.rstrip(":"), []).append(rest)
    return found


def explanations(draw: Draw, most: int = 4) -> list[Exchange]:
    """Why or how something is; then shorter, simpler, an example, the reason, or a detail of it."""
    entry = draw.choice(explained())
    about = entry["#"][0]
    question = patterns.said(entry["q"], draw, {})
    if question is None:
        return []
    made = [Exchange(question, entry["a"][0], f"This is about {about}. I know it.")]
    left = [(mark, line) for mark in "sxwem" for line in entry.get(mark, ())]
    left += [("f", line) for line in entry.get("f", ())] * 2
    while left and len(made) < most and draw.maybe(0.65):
        mark, line = left[draw.randrange(len(left))]
        left = [each for each in left if each != (mark, line)]
        if mark == "f":
            asked, reply = line.split(" => ")
            text = patterns.said([asked], draw, {})
            made += [Exchange(text, reply, f"Still about {about}.")] if text else []
        elif mark not in "sx" or len(made) == 1:  # shorter than the answer just before
            made += moves.made(_MARKS[mark], draw, line, f"Still about {about}.")
    return made

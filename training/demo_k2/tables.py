"""Facts in tables, and the short questions that go on from one: "and of X?", "which has more?".

tables.txt has three kinds of them. Pairs: `q:` and `a:` with <1> and <2>, `n:` how the question
goes on, `o:` what it asks for, `b:` the question the other way round, `m:` what is counted, `y:`
for years. `>` lines are orders, from least to most, `~` lines are rows in which things follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from demo_k2 import moves, patterns, words
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw, is_held_out

_KNOWN = frozenset(words.CITIES + words.TWO_WORD_CITIES + words.NAMES)


@dataclass
class Table:
    """A table's lines; rows: pairs, or the members of an order or a row as single items."""

    name: str
    kind: str = "pairs"
    title: list[str] = field(default_factory=list)  # words of an order; a row's unit and end
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    next_forms: list[str] = field(default_factory=list)
    asks_for: str = ""
    reverse: list[str] = field(default_factory=list)
    counted: str = ""
    has_years: bool = False
    rows: list[list[str]] = field(default_factory=list)


@cache
def tables() -> list[Table]:
    """All of tables.txt, without rows that hold a name kept for evaluation."""
    found: list[Table] = []
    for line in patterns.lines("tables.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "#":
            table = Table(rest)
            found.append(table)
        elif mark == ">":
            table.kind, table.title = "order", rest.split(" | ")
        elif mark == "~":
            unit, _, end = rest.rpartition(" ")
            table.kind, table.title = "row", [unit, end]
        elif mark == "q:":
            table.questions.append(rest)
        elif mark == "a:":
            table.answers.append(rest)
        elif mark == "n:":
            table.next_forms = rest.split(" / ")
        elif mark == "o:":
            table.asks_for = rest
        elif mark == "b:":
            table.reverse = rest.split(" => ")
        elif mark == "m:":
            table.counted = rest
        elif mark == "y:":
            table.has_years = True
        else:
            table.rows = [row for row in _rows(rest, table.kind) if not _is_kept(row)]
    return found


def _rows(text: str, kind: str) -> list[list[str]]:
    if kind == "pairs":
        return [row.split(": ", 1) for row in text.split(" / ")]
    return [[item] for item in (text.split(" < ") if kind == "order" else text.split())]


def _is_kept(row: list[str]) -> bool:
    return any(value in _KNOWN and is_held_out(value) for value in row)


def exchanges(draw: Draw, most: int = 4) -> list[Exchange]:
    """A question about a table and up to `most` - 1 that lean on it."""
    table = draw.choice(tables())
    kind: Callable[[Table, Draw, int], list[Exchange]] = {
        "pairs": _of_pairs,
        "order": _of_order,
        "row": _of_row,
    }[table.kind]
    return kind(table, draw, most)


def _of_pairs(table: Table, draw: Draw, most: int) -> list[Exchange]:
    rows = draw.sample(table.rows, min(len(table.rows), most + 1))
    row = rows.pop()
    question = patterns.said(table.questions, draw, _slots(row))
    if question is None:
        return []
    made = [Exchange(question, _answer(table, row, draw), _thought(table, row))]
    before = None  # the row that was asked for before this one
    while len(made) < most and draw.maybe(0.65):
        kind = draw.random()
        if before and table.counted and kind < 0.5:
            made += _counted(table, before, row, draw)
        elif before and table.has_years and before[1] != row[1] and kind < 0.5:
            first = min(before, row, key=lambda each: int(each[1]))
            reply = moves.answered("earlier", draw, *first)
            made += moves.made("earlier", draw, reply, f"{before[1]} and {row[1]}.")
        elif table.reverse and kind > 0.85:
            asked, reply = table.reverse
            text = patterns.said([asked], draw, _slots(row))
            told = patterns.answered([reply], draw, _slots(row))
            made += [Exchange(text, told, told)] if text else []
        elif kind > 0.72:
            made += moves.about_answer(made[-1].answer, draw)
        elif rows:
            old, before, row = row, row, rows.pop()
            made += _asked_again(table, old, row, draw)
        else:
            break
    return made


def _asked_again(table: Table, old: list[str], row: list[str], draw: Draw) -> list[Exchange]:
    """The same question about another row, by a short form or as a correction."""
    answer = _answer(table, row, draw)
    if draw.maybe(0.15):
        start = draw.choice(["", "", "Ah, I see. ", "No problem. "])
        return moves.made("meant", draw, start + answer, _thought(table, row), row[0], old[0])
    form = draw.choice(table.next_forms)
    slots = _slots(row)
    pattern = draw.choice(moves.wordings()["another"].questions).replace("<1>", form)
    question = patterns.said([pattern], draw, slots)
    return [Exchange(question, answer, _thought(table, row))] if question else []


def _counted(table: Table, a: list[str], b: list[str], draw: Draw) -> list[Exchange]:
    """Which of two has more or fewer, or how many more."""
    if a[1] == b[1]:
        return moves.made(
            "which-more", draw, f"Both have {a[1]} {table.counted}.", "They are equal.", "", "",
            table.counted,
        )  # fmt: skip
    less, more = sorted([a, b], key=lambda each: int(each[1]))
    small, large = less[1], more[1]
    kind = draw.choice(["which-more", "which-more", "which-fewer", "difference"])
    if kind == "difference":
        count = int(large) - int(small)
        reply = moves.answered(kind, draw, str(count), f"{large} - {small} = {count}")
        return moves.made(kind, draw, reply, f"{large} - {small} = {count}.")
    if kind == "which-more":
        told = f"{large} is more than {small}"
        reply = moves.answered(kind, draw, more[0], told, table.counted)
    else:
        told = f"{small} is less than {large}"
        reply = f"{_capital(less[0])}: {told}."
    return moves.made(kind, draw, reply, f"{_capital(told)}.", "", "", table.counted)


def _of_order(table: Table, draw: Draw, most: int) -> list[Exchange]:
    """Two things compared, the other one of them, a third, and the most of all three."""
    more, less, best, least = table.title
    items = [row[0] for row in table.rows]
    down = draw.maybe(0.4)
    word, other_word = (less, more) if down else (more, less)
    ranks = draw.sample(range(len(items)), min(3, len(items)))

    def winner(*which: int, lowest: bool = down) -> str:
        return items[min(which) if lowest else max(which)]

    def compared(a: int, b: int) -> str:
        first, second = (min(a, b), max(a, b)) if down else (max(a, b), min(a, b))
        return f"{_capital(items[first])} is {word} than {items[second]}."

    a, b, c = ranks
    answer = compared(a, b)
    made = moves.made("compare", draw, answer, answer, items[a], items[b], word)
    named = [a, b]
    while made and len(made) < most and draw.maybe(0.65):
        kind = draw.random()
        if len(named) == 3 and kind < 0.6:
            text, lowest = (least, True) if draw.maybe(0.4) else (best, False)
            told = f"{_capital(winner(*named, lowest=lowest))} is the {text}."
            if text.endswith("sun"):
                told = told.replace("is the", "is")
            if any(told == each.answer for each in made):
                break
            made += moves.made("of-three", draw, told, told, "", "", text.split(" from ")[0])
        elif len(named) == 2 and kind < 0.3:
            told = f"{_capital(winner(a, b, lowest=not down))} is {other_word}."
            made += moves.made("other-end", draw, told, told, "", "", other_word)
        elif len(named) == 2 and kind < 0.6:
            named.append(c)
            told = _placed(items, a, b, c, more, less)
            made += moves.made("third", draw, told, told, items[c])
        elif kind < 0.8 and len(named) == 2:
            told = compared(b, c)
            made += moves.made("and-other", draw, told, told, items[b], items[c])
            a, b, c = b, c, a
            named = [a, b]
        else:
            made += moves.about_answer(made[-1].answer, draw)
    return made


def _placed(items: list[str], a: int, b: int, c: int, more: str, less: str) -> str:
    """Where a third thing stands among two."""
    low, high = min(a, b), max(a, b)
    name = _capital(items[c])
    if low < c < high:
        return f"{name} is {more} than {items[low]}, but {less} than {items[high]}."
    return f"{name} is {more if c > high else less} than both {items[a]} and {items[b]}."


def _of_row(table: Table, draw: Draw, most: int) -> list[Exchange]:
    """What follows something or stands before it, and on from there."""
    unit, end = table.title
    items = [row[0] for row in table.rows]
    at, step = draw.randrange(len(items)), draw.choice([1, 1, -1])

    def neighbour(place: int, by: int) -> str | None:
        if end == "line" and not 0 <= place + by < len(items):
            return None
        return items[(place + by) % len(items)]

    if neighbour(at, step) is None:
        step = -step
    made: list[Exchange] = []
    for turn in range(most):
        word = "after" if step > 0 else "before"
        other = neighbour(at, step)
        if turn and (other is None or not draw.maybe(0.65)):
            break
        told = f"{_capital(other or '')} comes {word} {items[at]}."
        if turn and draw.maybe(0.75):
            made += moves.made(f"and-{word}", draw, told, told)
        else:
            made += moves.made(word, draw, told, told, items[at], unit)
        if not made:
            break
        if draw.maybe(0.25) and neighbour(at, -step) is not None:  # back, and said so
            step = -step
            word = "after" if step > 0 else "before"
            told = f"{_capital(neighbour(at, step) or '')} comes {word} {items[at]}."
            made += moves.made(word, draw, told, told, items[at], unit)
        at = (at + step) % len(items)
    return made[:most]


def _answer(table: Table, row: list[str], draw: Draw) -> str:
    return patterns.answered(table.answers, draw, _slots(row))


def _thought(table: Table, row: list[str]) -> str:
    return f"The user asks for {table.asks_for.replace('<1>', row[0])}. I know it."


def _slots(row: list[str]) -> dict[str, str]:
    return {"1": row[0], "2": row[1]}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text else text

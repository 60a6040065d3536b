"""Declared tools, requests that need them, K2's calls, results and answers: all drawn.

Half of the tools come from the catalogue tools.txt, whose names and parameters vary; the others are
made up from a verb, a noun and parameters with plain names, so that reading a declaration is what
is learnt and not a list of tools. Knows OpenAI's message format and no markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_k2 import words
from demo_k2.knowledge import CAPITALS
from demo_k2.patterns import as_typed, chosen
from demo_k2.words import Draw, with_article

_SLOT = re.compile(r"<(\d)([bc]?)>")
_FIELD = re.compile(r"<(\w+)>")
_ENUMS = {
    "onoff": ["on", "off"],
    "priority": ["low", "normal", "high"],
}
_CHOICES = {
    "sky": "sunny cloudy rainy windy foggy clear snowy stormy".split(),
    "currency": "USD EUR GBP JPY CHF CAD SEK INR euros dollars pounds yen francs".split(),
    "orderstatus": ["on its way", "delivered", "packed", "delayed", "cancelled", "ready"],
    "room": ["kitchen", "bedroom", "bathroom", "living room", "office", "hall", "garage", "garden"],
    "listname": "shopping kitchen party weekend holiday office home".split(),
    "unit": "km miles metres feet inches kg pounds litres gallons cm yards grams".split(),
    "sent": ["sent", "ok", "done"],
    "started": ["started", "ok"],
    "set": ["set", "ok"],
    "done": ["done", "ok", "success"],
    "noun": words.NOUNS,
    "food": words.FOODS,
    "language": words.LANGUAGES,
    "country": list(CAPITALS),
}
_VALUES: dict[str, Callable[[Draw], Any]] = {
    "city": Draw.city,
    "name": Draw.name,
    "phrase": Draw.phrase,
    "amount": Draw.amount,
    "code": Draw.code,
    "email": Draw.email,
    "date": Draw.date,
    "clock": Draw.clock,
    "invented": lambda draw: draw.invented(3).lower(),
    "number": lambda draw: draw.number(1, 9999),
    "count": lambda draw: draw.number(2, 60),
    "small": lambda draw: draw.randint(1, 12),
    "degrees": lambda draw: draw.randint(-12, 39),
    "big": lambda draw: draw.number(1, 99) * 10 ** draw.randint(2, 5),
    "money": lambda draw: round(draw.randint(100, 99999) / 100, 2),
    "year": lambda draw: draw.randint(1990, 2040),
    "symbol": lambda draw: "".join(draw.choices("ABCDEFGHIKLMNOPRSTUVXZ", k=draw.randint(3, 4))),
    "sum": lambda draw: f"{draw.amount()} {draw.choice('+-*/')} {draw.amount()}",
    "title": lambda draw: f"{draw.choice(['', '', 'The ', 'Old '])}{draw.invented(3)}",
    "address": lambda draw: f"{draw.number(1, 200)} {draw.invented(3)} Street",
    "file": lambda draw: (
        f"{draw.choice(['', '', 'docs/', 'data/', 'src/', '/etc/', '/tmp/'])}"
        f"{_file_word(draw)}{draw.choice(['', '_' + _file_word(draw)])}"
        f"{draw.choice(['.txt', '.txt', '.md', '.py', '.csv', '.json', ''])}"
    ),
    "folder": lambda draw: (
        f"{draw.choice(['', '/', 'home/', '/etc/'])}{_file_word(draw)}"
        f"{draw.choice(['', '/' + _file_word(draw)])}"
    ),
    "chore": lambda draw: draw.choice(
        [
            f"call {draw.name()}",
            f"buy {draw.choice(words.FOODS)}",
            f"{draw.choice(_VERBS)} the {draw.choice(words.NOUNS)}",
            f"{draw.choice(_VERBS)} {draw.phrase()}",
            f"write to {draw.name()}",
        ]
    ),
}
_INTEGERS = ("amount", "small", "degrees", "year", "number", "count")
# Of made-up tools: names of parameters and what they hold.
_PARAMETERS = {
    "name": "name",
    "customer": "name",
    "owner": "name",
    "city": "city",
    "place": "city",
    "number": "amount",
    "code": "code",
    "id": "code",
    "count": "small",
    "colour": "colour",
    "title": "phrase",
    "text": "phrase",
    "date": "date",
    "time": "clock",
    "email": "email",
    "price": "amount",
    "country": "country",
    "language": "language",
    "room": "room",
    "item": "noun",
    "priority": "priority",
    "state": "onoff",
    "food": "food",
    "year": "year",
    "level": "small",
}
_CHOICES["colour"] = words.COLOURS
_VERBS = """find get show create update delete check start stop send open close print move copy
rename book cancel order add remove count list save load read write sort share lock unlock repair
clean paint sell buy rent test install fetch export import archive approve reject assign""".split()


def _file_word(draw: Draw) -> str:
    return draw.pieced().lower() if draw.pieces and draw.maybe(0.4) else draw.choice(words.NOUNS)


@dataclass
class Parameter:
    """number_type: what JSON schema calls it where it is a number."""

    name: str
    kind: str
    description: str
    is_required: bool = True
    number_type: str = "integer"

    def schema(self) -> dict[str, Any]:
        kind = self.number_type if self.kind in _INTEGERS else "string"
        schema: dict[str, Any] = {"type": kind, "description": self.description}
        if self.kind in _ENUMS:
            schema["enum"] = _ENUMS[self.kind]
        return schema


@dataclass
class Tool:
    """A tool as declared, and how it is asked for: patterns with a <1> for its first parameter."""

    name: str
    description: str
    parameters: list[Parameter]
    requests: list[str]
    joint_requests: list[str] = field(default_factory=list)
    result: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    vague_requests: list[str] = field(default_factory=list)
    counter_question: str = ""

    def declaration(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {p.name: p.schema() for p in self.parameters},
                    "required": [p.name for p in self.parameters if p.is_required],
                },
            },
        }


@dataclass
class Use:
    """A request and what it leads to: one call or several of the same tool, results, answers."""

    tool: Tool
    request: str
    arguments: list[dict[str, Any]]
    results: list[str]
    answers: list[str]


@dataclass
class Entry:
    """A topic of the catalogue, before its names are drawn.

    rivals: first names of those that could serve the same requests.
    """

    names: list[str]
    descriptions: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    joint: list[str] = field(default_factory=list)
    vague: list[str] = field(default_factory=list)
    ask: str = ""
    result: str = ""
    answers: list[str] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)

    def tool(self, draw: Draw) -> Tool:
        parameters, taken = [], set()
        for line in self.parameters:
            names, kind, description = line.split(" ", 2)
            free = [name for name in names.split("|") if name not in taken]
            name = _renamed(draw.choice(free[:1] * 2 + free), taken, draw)
            taken.add(name)
            text = chosen(description, draw)
            is_required = not kind.startswith("?")
            parameters.append(
                Parameter(name, kind.lstrip("?"), text, is_required, _number_type(draw))
            )
        return Tool(
            _cased(draw.choice(self.names), draw),
            chosen(draw.choice(self.descriptions), draw),
            parameters,
            self.requests,
            self.joint,
            dict(pair.split(":") for pair in self.result.split()),
            self.answers,
            self.vague,
            self.ask,
        )


def catalogue() -> list[Entry]:
    """The entries of tools.txt."""
    entries: list[Entry] = []
    for line in Path(__file__).with_name("tools.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "#":
            entries.append(Entry(rest.split("|")))
            continue
        entry = entries[-1]
        if mark == "x:":
            entry.rivals = rest.split()
        elif mark in ("r:", "e:"):
            setattr(entry, {"r:": "result", "e:": "ask"}[mark], rest)
        else:
            {
                "d:": entry.descriptions,
                "p:": entry.parameters,
                "q:": entry.requests,
                "m:": entry.joint,
                "u:": entry.vague,
                "a:": entry.answers,
            }[mark].append(rest)
    return entries


def invented(draw: Draw) -> Tool:
    """A tool that nobody has: `rename_invoice(customer, code)`."""
    verb, noun = draw.choice(_VERBS), draw.choice(words.NOUNS)
    thing = noun if draw.maybe(0.6) else f"{draw.choice(words.NOUNS)} {noun}"
    parameters: list[Parameter] = []
    names: list[str] = []
    for known in draw.sample(list(_PARAMETERS), draw.choice([1, 1, 2, 2, 3])):
        name = _renamed(known, names, draw)
        names.append(name)
        text = draw.choice([f"The {name}.", f"{name.capitalize()} of the {noun}."])
        parameters.append(Parameter(name, _PARAMETERS[known], text, number_type=_number_type(draw)))
    forms = ["{with|for|using} {the |}%s <%d>", "with %s: <%d>", "{where the|whose} %s is <%d>"]
    phrases = [draw.choice(forms) % (name, i) for i, name in enumerate(names, 1)]
    joined = " and ".join(phrases) if len(phrases) < 3 else ", ".join(phrases)
    what = draw.choice([f"the {thing}", f"my {thing}", with_article(thing)])
    request = f"{{|please |can you |I want to }}{verb} {what} {joined}{{.|}}"
    return Tool(
        _cased(f"{verb}_{thing.replace(' ', '_')}", draw),
        draw.choice([f"{verb.capitalize()} {with_article(thing)}.", f"Use this to {verb} {what}."]),
        parameters,
        [request],
        [],
        {draw.choice(["status", "result"]): "done"} if draw.maybe(0.6) else {"id": "code"},
        [f"Done: {verb} {thing}.", f"I did it: {verb} {what}.", "It is done."],
    )


def _renamed(name: str, taken: Collection[str], draw: Draw) -> str:
    """The name, or at times one that only the declaration can tell."""
    if draw.pieces and draw.maybe(0.15):
        other = draw.pieced().lower()
        return name if other in taken else other
    return name


def _number_type(draw: Draw) -> str:
    return draw.choice(["integer", "integer", "number"])


def use(tool: Tool, draw: Draw, joint: bool = False) -> Use:
    """A request for this tool with drawn arguments; joint: for two or three calls in one breath."""
    pattern = draw.choice(tool.joint_requests if joint else tool.requests)
    values: dict[str, Any] = {}

    def slot(found: re.Match[str]) -> str:
        parameter = tool.parameters[int(found[1]) - 1]
        key = found[1] + found[2]
        while key not in values:
            value = _value(parameter.kind, draw)
            if value not in values.values() or parameter.kind in _ENUMS:
                values[key] = value
        return str(values[key])

    request = _SLOT.sub(slot, chosen(pattern, draw))
    copies = [""] + [c for c in "bc" if f"1{c}" in values]
    arguments = []
    for copy in copies:
        given = {}
        for number, parameter in enumerate(tool.parameters, 1):
            key = f"{number}{copy}" if f"{number}{copy}" in values else str(number)
            if key in values:
                given[parameter.name] = values[key]
        arguments.append(given)
    outcomes = [{name: _value(kind, draw) for name, kind in tool.result.items()} for _ in copies]
    answers = []
    for copy, outcome in zip(copies, outcomes, strict=True):
        slots = {str(i): values.get(f"{i}{copy}", values.get(str(i), "")) for i in range(1, 4)}
        answers.append(_filled(draw.choice(tool.answers), slots | outcome))
    results = [_result(outcome, draw) for outcome in outcomes]
    return Use(tool, as_typed(request, draw), arguments, results, answers)


def _result(outcome: dict[str, Any], draw: Draw) -> str:
    if draw.maybe(0.6):
        return json.dumps(outcome)
    return ", ".join(f"{name}: {value}" for name, value in outcome.items())


def _filled(pattern: str, slots: dict[str, Any]) -> str:
    text = _FIELD.sub(lambda found: str(slots[found[1]]), pattern)
    return text[0].upper() + text[1:]


def _value(kind: str, draw: Draw) -> Any:
    if kind in _ENUMS:
        return draw.choice(_ENUMS[kind])
    if kind in _CHOICES:
        return draw.choice(_CHOICES[kind])
    return _VALUES[kind](draw)


def _cased(name: str, draw: Draw) -> str:
    """snake_case mostly, as tools are; camelCase and kebab-case occur."""
    kind = draw.random()
    first, *rest = name.split("_")
    if kind < 0.15:
        return first + "".join(part.capitalize() for part in rest)
    return name.replace("_", "-") if kind < 0.22 else name

"""A rule file's text -> RuleSet: what keys and values it may have, each mistake with its line.

Owns the format described in optimize_rules/README.md. Knows nothing of models: whether a rule
matches anything is matching.py's question; of KTransformers' format only how to recognise it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from hybrid_k2.backends.registry import BACKENDS, MODULE_CLASSES, did_you_mean, find_backend
from hybrid_k2.errors import BadInputError, RuleError
from hybrid_k2.rules.layers import LayerSet, parse_layers
from hybrid_k2.rules.patterns import NamePattern
from hybrid_k2.rules.sizes import parse_size
from hybrid_k2.rules.yaml_lines import Node

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Placement:
    """A backend and all of its kwargs, defaults included."""

    backend: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """One item of `rules:`. A module must satisfy every condition that is there.

    placements: by class of module. suffixes: by class, what the file's format appends to our name
    (KTransformers names an MLP's `gate_proj` where we name the MLP). is_strict: matching nothing
    is an error, not a note.
    """

    line: int
    placements: Mapping[str, Placement]
    name: NamePattern | None = None
    classes: tuple[str, ...] = ()
    layers: LayerSet | None = None
    suffixes: Mapping[str, str] = field(default_factory=dict)
    is_strict: bool = True


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A parsed rule file.

    file: as error messages name it. vram, ram: most bytes to use, per GPU and in all; None is no
    limit but the machine's. default_device: where modules go that no rule matches. notes: what a
    translation left out.
    """

    file: str
    rules: tuple[Rule, ...]
    description: str = ""
    vram: int | None = None
    ram: int | None = None
    allow_disk: bool = False
    default_device: str = "cpu"
    notes: tuple[str, ...] = ()


_TOP_KEYS = ("description", "vram", "ram", "allow_disk", "rules")


def parse_rules(root: Node, file: str) -> RuleSet:
    """Checks our own format; raises RuleError for the first mistake."""
    reader = Reader(file)
    top = {"rules": root} if isinstance(root.value, list) else reader.mapping(root, _TOP_KEYS, "")
    if "rules" not in top:
        raise reader.error(root, "no `rules:`; a rule file is a list of rules or has that key")
    items = reader.typed(top["rules"], list, "rules")
    if not items:
        raise reader.error(top["rules"], "`rules:` is empty; a rule has `match:` and `replace:`")
    options: dict[str, Any] = {
        key: reader.call(top[key], parse_size, top[key].text)
        for key in ("vram", "ram")
        if key in top
    }
    for key, kind in (("description", str), ("allow_disk", bool)):
        if key in top:
            options[key] = reader.typed(top[key], kind, key)
    return RuleSet(file, tuple(_rule(reader, item) for item in items), **options)


def _rule(reader: Reader, node: Node) -> Rule:
    item = reader.mapping(node, ("match", "replace"), "a rule")
    for key in ("match", "replace"):
        if key not in item:
            raise reader.error(node, f"the rule has no `{key}:`")
    match = reader.mapping(item["match"], ("name", "class", "layers"), "match")
    if not match:
        raise reader.error(item["match"], "`match:` is empty; give name, class or layers")
    name = layers = None
    if "name" in match:
        text = reader.typed(match["name"], str, "name")
        name = reader.call(match["name"], NamePattern, text)
    if "layers" in match:
        reader.scalar(match["layers"], "layers")
        layers = reader.call(match["layers"], parse_layers, match["layers"].text)
    classes = _classes(reader, match["class"]) if "class" in match else ()
    return Rule(node.line, _placements(reader, item["replace"], classes), name, classes, layers)


def _classes(reader: Reader, node: Node) -> tuple[str, ...]:
    text = reader.typed(node, str, "class")
    classes = tuple(part.strip() for part in text.split("|"))
    for name in classes:
        if name not in MODULE_CLASSES:
            raise reader.error(node, f"unknown class {name!r}{did_you_mean(name, MODULE_CLASSES)}")
    return classes


def _placements(reader: Reader, node: Node, classes: tuple[str, ...]) -> dict[str, Placement]:
    replace = reader.mapping(node, ("backend", "kwargs"), "replace")
    if "backend" not in replace:
        raise reader.error(node, f"`replace:` has no `backend:` (known: {', '.join(BACKENDS)})")
    backend = reader.typed(replace["backend"], str, "backend")
    spec = reader.call(replace["backend"], find_backend, backend)
    for module_class in classes:
        reader.call(replace["backend"], find_backend, backend, module_class)
    given: dict[str, Any] = {}
    if "kwargs" in replace:
        for key, value in reader.mapping(replace["kwargs"], None, "kwargs").items():
            given[key] = reader.scalar(value, key)
            reader.call(value, spec.resolve_kwargs, {key: given[key]})
    placement = Placement(spec.name, spec.resolve_kwargs(given))
    return {module_class: placement for module_class in spec.serves}


class Reader:
    """Type checks whose errors carry the file and the line of the node."""

    def __init__(self, file: str) -> None:
        self._file = file

    def error(self, node: Node, message: str) -> RuleError:
        return RuleError(f"{self._file}:{node.key_line or node.line}: {message}")

    def call(self, node: Node, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)`, its complaint with the file and the node's line."""
        try:
            return function(*args, **kwargs)
        except (BadInputError, ValueError) as error:
            raise self.error(node, str(error)) from None

    def typed(self, node: Node, kind: type, what: str) -> Any:
        if type(node.value) is not kind:
            words = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}
            raise self.error(node, f"{what} is {_describe(node)}; it must be {words[kind]}")
        return node.value

    def scalar(self, node: Node, what: str) -> Any:
        if isinstance(node.value, list | dict) or node.value is None:
            raise self.error(node, f"{what} is {_describe(node)}; it must be a single value")
        return node.value

    def mapping(self, node: Node, keys: tuple[str, ...] | None, what: str) -> dict[str, Node]:
        if type(node.value) is not dict:
            wanted = f" with {', '.join(keys)}" if keys else ""
            where = what or "the file"
            raise self.error(node, f"{where} is {_describe(node)}; it must be a mapping{wanted}")
        for key, value in node.value.items():
            if keys is not None and key not in keys:
                where = f" in {what}" if what else ""
                raise self.error(value, f"unknown key {key[:40]!r}{where}{did_you_mean(key, keys)}")
        return node.value


def _describe(node: Node) -> str:
    if isinstance(node.value, list | dict):
        return "a list" if isinstance(node.value, list) else "a mapping"
    return "empty" if node.value is None else repr(node.text[:40])

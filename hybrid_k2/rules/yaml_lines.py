"""YAML text -> values that know their line, for error messages that start with `file:line:`.

Reads the subset of YAML that a rule file needs and refuses the rest: aliases (ten lines of them
can stand for gigabytes), tags, dates, merge keys, deep nesting, and a key given twice, which plain
YAML resolves silently. Knows nothing of rules.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from hybrid_k2.errors import RuleError

MAX_BYTES = 64 << 10  # KTransformers' largest, for 8 GPUs, has 20 KB
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands; `text` is a scalar as written (`010`, not 8).

    value: str, int, float, bool, None, list[Node] or dict[str, Node].
    """

    value: Any
    line: int
    text: str = ""
    key_line: int = 0


def parse_yaml(data: bytes, file: str) -> Node:
    """Parses one YAML document; raises RuleError with `file:line:` for whatever is wrong."""
    if len(data) > MAX_BYTES:
        raise RuleError(f"{file}:1: {len(data)} bytes; a rule file has at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleError(f"{file}:{line}: not UTF-8: byte 0x{data[error.start]:02x}") from None
    try:
        loader = _BoundedLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise RuleError(f"{file}:1: the file is empty; it needs `rules:` and a list")
            return _convert(loader, root, file)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RuleError(f"{file}:{line}: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RuleError(f"{file}:{line}: U+{error.character:04X}: {error.reason}") from None


class _BoundedLoader(yaml.SafeLoader):
    """Refuses what makes the result larger or deeper than the text, while composing."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            problem = f"alias *{event.anchor} is not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            problem = f"tag {event.tag!r} is not supported; write a plain value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _convert(loader: yaml.SafeLoader, node: yaml.Node, file: str, key_line: int = 0) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, file) for item in node.value], line, "", key_line)
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Node] = {}
        for key, item in node.value:
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RuleError(f"{file}:{at}: a key must be a plain word")
            if key.value in entries:
                first = entries[key.value].key_line
                raise RuleError(f"{file}:{at}: key {key.value!r} again; it is at line {first} too")
            entries[key.value] = _convert(loader, item, file, at)
        return Node(entries, line, "", key_line)
    return Node(_scalar(loader, node, file, line), line, node.value, key_line)


def _scalar(
    loader: yaml.SafeLoader, node: yaml.Node, file: str, line: int
) -> str | int | float | bool | None:
    kind = node.tag.rpartition(":")[2]
    if kind == "str" and node.style is None:
        return _exponent(node.value)
    if kind not in ("null", "bool", "int", "float", "str"):
        raise RuleError(f"{file}:{line}: {node.value[:40]!r} reads as a {kind}; quote it")
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise RuleError(f"{file}:{line}: {node.value[:40]!r}: {error}") from None


def _exponent(word: str) -> str | float:
    """`1e-6` is a number to everybody but YAML 1.1, which wants `1.0e-6`."""
    mantissa, e, exponent = word.partition("e")
    if e and mantissa.isdecimal() and exponent.lstrip("+-").isdecimal() and len(word) < 12:
        return float(word)
    return word

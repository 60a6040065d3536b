"""Tool declarations as K2.5 and later were trained on them: JSON schemas written as TypeScript.

Byte for byte what the models' own tokenizer code writes, Python's spelling of booleans in comments
included. Knows nothing of templates or control tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_INDENT = "  "
_NAME_OF_TYPE = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_CONSTRAINTS_OF_TYPE = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_CLASS_OF_ENUM_TYPE: Mapping[Any, Any] = {
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
}


def typescript_declaration(tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the text that declares the functions among `tools`, all of their keys sorted.

    None where there is no function or a schema says what this notation cannot: the model's own code
    then declares all tools as JSON.
    """
    functions = [tool.get("function") for tool in tools if tool.get("type") == "function"]
    try:
        declared = [_Function(function).declaration() for function in functions if function]
    except (_UnsupportedError, RecursionError, TypeError, ValueError):
        return None  # the last two: a value that JSON cannot say either, whose error names it
    if not declared:
        return None
    lines = "\n".join(declared)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{lines}\n}}\n"


class _UnsupportedError(Exception):
    """A schema has no TypeScript here."""


class _Function:
    """One function on its way into TypeScript, with the definitions its schemas refer to."""

    def __init__(self, function: Any) -> None:
        self._function = _mapping(function)
        self._definitions: dict[str, Any] = {}
        self._refers_to_itself = False

    def declaration(self) -> str:
        parameters = _mapping(self._function.get("parameters") or {})
        body = self._object(parameters, "")
        interfaces = []
        if self._refers_to_itself:
            fields = [
                self._field(name, schema, name in _required(parameters), _INDENT)
                for name, schema in sorted(_properties(parameters).items())
            ]
            interfaces.append(f"interface parameters {_braced(fields, '') if fields else '{}'}")
            body = "parameters"
        for name, schema in list(self._definitions.items()):
            lines = _commented(_mapping(schema).get("description"), "")
            interfaces.append(f"{lines}interface {name} {self._type(schema, '')}")
        comment = _commented(self._function.get("description"), "")
        name = self._function.get("name", "function")
        return "\n".join([*interfaces, f"{comment}type {name} = (_: {body}) => any;"])

    def _type(self, schema: Any, indent: str) -> str:
        if isinstance(schema, bool):
            return "any" if schema else "null"
        schema = _mapping(schema)
        kind = schema.get("type")
        if "$ref" in schema:
            return self._referred(schema["$ref"])
        if "anyOf" in schema:
            return " | ".join(self._type(one, indent) for one in _list(schema["anyOf"]))
        if "enum" in schema:
            return _enum(schema)
        if isinstance(kind, list):
            return " | ".join(_looked_up(_NAME_OF_TYPE, one) for one in kind)
        if kind == "object":
            return self._object(schema, indent)
        if kind == "array":
            return self._array(schema, indent)
        if isinstance(kind, str):
            return "number" if kind == "integer" else kind
        if not schema:
            return "any"
        raise _UnsupportedError

    def _object(self, schema: Mapping[str, Any], indent: str) -> str:
        self._definitions |= sorted(_mapping(schema.get("$defs") or {}).items())
        inner = indent + _INDENT
        required = _required(schema)
        in_order = sorted(_properties(schema).items(), key=lambda p: (p[0] not in required, p[0]))
        fields = [self._field(name, one, name in required, inner) for name, one in in_order]
        others = schema.get("additionalProperties")
        if others is not None:
            kind = "never" if others is False else self._type(others, inner)
            fields.append(f"{inner}[k: string]: {kind}")
        return _braced(fields, indent)

    def _field(self, name: str, schema: Any, is_required: bool, indent: str) -> str:
        lines = "".join(_comments(schema, indent))
        default = schema.get("default") if isinstance(schema, Mapping) else None
        if default is not None:
            is_number = isinstance(default, int | float)
            told = repr(default) if is_number else json.dumps(default, ensure_ascii=False)
            lines += f"{indent}// Default: {told}\n"
        return f"{lines}{indent}{name}{'' if is_required else '?'}: {self._type(schema, indent)}"

    def _array(self, schema: Mapping[str, Any], indent: str) -> str:
        items = schema.get("items") or {}
        inner = indent + _INDENT
        lines = "".join(_comments(items, inner))
        if not lines:
            return f"Array<{self._type(items, indent)}>"
        return f"Array<\n{lines}{inner}{self._type(items, inner)}\n{indent}>"

    def _referred(self, target: Any) -> str:
        if target == "#":
            self._refers_to_itself = True
            return "parameters"
        prefix, _, name = str(target).rpartition("/")
        if prefix != "#/$defs" or name not in self._definitions:
            raise _UnsupportedError
        return name


def _comments(schema: Any, indent: str) -> Iterator[str]:
    """Yields the lines above a field: its description, then what limits its value."""
    if not isinstance(schema, Mapping):
        return
    yield _commented(schema.get("description"), indent)
    kind = schema.get("type")
    if isinstance(kind, str) and not {"$ref", "anyOf", "enum"} & schema.keys():
        limits = [f"{k}: {schema[k]}" for k in _CONSTRAINTS_OF_TYPE.get(kind, ()) if k in schema]
        if limits:
            yield f"{indent}// {', '.join(limits)}\n"


def _commented(description: Any, indent: str) -> str:
    if not description:
        return ""
    if not isinstance(description, str):
        raise _UnsupportedError
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in description.split("\n"))


def _enum(schema: Mapping[str, Any]) -> str:
    values = _list(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [one for one in kind if one != "null"]
        if len(others) != 1 or len(kind) > 2:
            raise _UnsupportedError
        kind = others[0]
    expected = _CLASS_OF_ENUM_TYPE.get(kind, object) if isinstance(kind, str) else object
    if not all(value is None or isinstance(value, expected) for value in values):
        raise _UnsupportedError
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)


def _braced(fields: Sequence[str], indent: str) -> str:
    return "{\n" + ",\n".join(fields) + f"\n{indent}}}" if fields else "{}"


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(schema.get("properties") or {})


def _required(schema: Mapping[str, Any]) -> list[Any]:
    return _list(schema.get("required") or [])


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _UnsupportedError
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _UnsupportedError
    return list(value)


def _looked_up(names: Mapping[str, str], value: Any) -> str:
    if not isinstance(value, str) or value not in names:
        raise _UnsupportedError
    return names[value]

"""JSON schemas that clients send, for tests of constrained answers, and random answers to them.

Bounded, so that random tokens come to an end. `jsonschema` judges the values; knows nothing of
servers.
"""

import json
import random
from typing import Any

import jsonschema
import numpy as np

STRING = {"type": "string", "maxLength": 12}
INTEGER = {"type": "integer", "minimum": -99, "maximum": 999}


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object with these properties, all required where not said otherwise, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "no properties": closed(),
    "a string": closed(city=STRING),
    "every scalar": closed(
        a=STRING, b=INTEGER, c={"type": "boolean"}, d={"type": "null"}, e={"enum": [1, "x", None]}
    ),
    "all optional": closed([], a=STRING, b=INTEGER, c={"type": "boolean"}),
    "some optional": closed(["b"], a=STRING, b=INTEGER, c=STRING),
    "nested": closed(where=closed(lat=INTEGER, lon=INTEGER), name=STRING),
    "array": closed(items={"type": "array", "items": STRING, "minItems": 1, "maxItems": 3}),
    "array of objects": closed(
        edits={"type": "array", "items": closed(["old"], old=STRING, all={"type": "boolean"})}
        | {"maxItems": 3}
    ),
    "tuple": closed(
        pair={"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}
    ),
    "nullable": closed(note={"type": ["string", "null"], "maxLength": 8}),
    "enum": closed(unit={"type": "string", "enum": ["celsius", "fahrenheit", "kelvin °"]}),
    "const": closed(kind={"const": "point"}, x=INTEGER),
    "anyOf": closed(value={"anyOf": [INTEGER, closed(s=STRING), {"type": "boolean"}]}),
    "reference": {
        **closed(a={"$ref": "#/$defs/leaf"}, b={"$ref": "#/$defs/leaf"}),
        "$defs": {"leaf": closed(v=INTEGER)},
    },
    "recursive": {
        **closed(["v"], v=INTEGER, next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
    },
    "pattern": closed(id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "format": closed(id={"type": "string", "format": "uuid"}),
    "number": closed(ratio={"type": "number", "minimum": 0, "maximum": 1}),
    "multiple": closed(n={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,4}$": INTEGER},
        "additionalProperties": False,
    },
    "unicode": closed(**{"städte und 城市": STRING, 'quote"d': INTEGER}),
    "allOf": {"allOf": [closed(["a"], a=STRING, b=INTEGER), {"required": ["b"]}]},
}


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    """Whether `text` is JSON that fits, as jsonschema judges it (formats, too)."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    return validator.is_valid(json.loads(text))


def random_answer(constraint: Any, seed: int, most: int = 2000, prefer: Any = None) -> list[int]:
    """Any tokens that the constraint allows, to its end, which it takes where it can.

    prefer: ids one of which is taken where allowed, every other time.
    """
    draw, token_ids = random.Random(seed), []
    while not constraint.is_done and len(token_ids) < most:
        if constraint.may_end and draw.random() < 0.5:
            break
        allowed = np.flatnonzero(constraint.mask())
        preferred = np.intersect1d(allowed, prefer) if prefer is not None else allowed[:0]
        if len(preferred) and draw.random() < 0.5:
            allowed = preferred
        token_ids.append(int(draw.choice(allowed)))
        constraint.accept(token_ids[-1])
    assert constraint.is_done or constraint.may_end, f"no end within {most} tokens"
    return token_ids

"""Schemas that no well-meaning client sends, and a program that compiles and follows them all.

`python schemas.py` prints, for each, its name and what was wrong with it, null where it could be
followed, and at last what memory that took. Imports little, so that a test can afford the process.
"""

import json
import resource
from typing import Any

from json_schemas import STRING, closed
from text_factory import small_vocabulary

from hybrid_k2.errors import RequestError
from hybrid_k2.text import Tokenizer
from hybrid_k2.text.json_grammar import MAX_SCHEMA_DEPTH, JsonGrammars

GRAMMARS = JsonGrammars(Tokenizer(small_vocabulary()))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema]}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Written out, it would be 2**levels large."""
    definitions = {
        f"d{i}": closed([], a={"$ref": f"#/$defs/d{i + 1}"}, b={"$ref": f"#/$defs/d{i + 1}"})
        for i in range(levels)
    }
    return {"$defs": {**definitions, f"d{levels}": STRING}, "$ref": "#/$defs/d0"}


# name: (schema, a part of the error, or None where it is followed)
HOSTILE: dict[str, tuple[Any, str | None]] = {
    "as deep as allowed": (nested(MAX_SCHEMA_DEPTH // 2 - 1), None),
    "too deep": (nested(MAX_SCHEMA_DEPTH), "nested deeper than"),
    "too deep for recursion": (nested(100_000), "nested deeper than"),
    "too large": ({"enum": [f"value {i}" for i in range(20_000)]}, "bytes; the most is"),
    "a large enum": ({"enum": [f"v{i * 7919 % 1000003}" for i in range(20_000)]}, None),
    "a reference to itself": ({"$ref": "#"}, "no value fits"),
    "references in a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "no value fits",
    ),
    "a value without end": (closed(a={"$ref": "#"}), None),
    "a doubling": (doubling(40), None),
    "products of alternatives": (
        {
            "allOf": [
                {"anyOf": [closed([], **{f"p{i}_{j}": STRING}) for j in range(3)]}
                for i in range(24)
            ]
        },
        "",
    ),
    "another machine's schema": ({"$ref": "http://169.254.169.254/latest"}, "retriev"),
    "a file": ({"$ref": "file:///etc/passwd"}, "retriev"),
    "nested repetition": ({"type": "string", "pattern": "^(a+)+$"}, None),
    "huge repetition": ({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}, None),
    "exponential states": ({"type": "string", "pattern": "^(.*a.{30}b.*)$"}, None),
    "many alternatives": (
        {"type": "string", "pattern": "|".join(f"a{{{i}}}.*b{{{i}}}" for i in range(1, 200))},
        None,
    ),
    "intersections": (
        {"allOf": [{"type": "string", "pattern": f".*{c}.*x.*"} for c in "abcdefghijkl"]},
        "",
    ),
    "deep parentheses": ({"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000}, ""),
    "lookahead": ({"type": "string", "pattern": "(?=a)b"}, "look"),
    "a broken pattern": ({"type": "string", "pattern": "(["}, ""),
    "a pattern of nothing": ({"type": "string", "pattern": "^a$", "minLength": 3}, "nsatisf"),
    "a huge minLength": ({"type": "string", "minLength": 10**9}, None),
    "a huge maxLength": ({"type": "string", "maxLength": 10**9}, None),
    "a huge minItems": ({"type": "array", "minItems": 10**6}, None),
    "a huge maxItems": ({"type": "array", "items": closed(a=STRING), "maxItems": 10**9}, None),
    "a huge minProperties": ({"type": "object", "minProperties": 10**6}, None),
    "a huge multiple": ({"type": "integer", "multipleOf": 999_999_937}, "fuel"),
    "a huge number": ({"type": "integer", "minimum": -(10**300), "maximum": 10**300}, ""),
    "3000 optional properties": (closed([], **{f"p{i}": STRING for i in range(3000)}), "max is"),
    "a long name": (closed(**{"x" * 100_000: STRING}), None),
    "nothing at all": (False, "must be an object"),
    "no such type": ({"type": "strin"}, "strin"),
    "a type that is no name": ({"type": 5}, "type"),
    "required that is no list": ({"type": "object", "required": "a"}, "required"),
    "properties that are no object": ({"type": "object", "properties": [1]}, "properties"),
    "an empty enum": ({"enum": []}, ""),
    "a list": ([1], "must be an object"),
    "a number": (3, "must be an object"),
    "nobody": (None, "must be an object"),
}


def follow(schema: Any) -> str | None:
    """Compiles a schema and takes 200 tokens that it allows; returns what was wrong, or None."""
    try:
        value = GRAMMARS.compile(schema, "the schema").start()
        for step in range(200):
            if value.is_done:
                break
            allowed = value.mask().nonzero()[0]
            value.accept(int(allowed[step * 7919 % len(allowed)]))
    except RequestError as error:
        return str(error)
    return None


def main() -> None:
    GRAMMARS.compile({}, "anything")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (schema, _) in HOSTILE.items():
        print(json.dumps([name, follow(schema)]), flush=True)
    used_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(json.dumps(["memory_bytes", used_kib << 10]))


if __name__ == "__main__":
    main()

"""Tool declarations in TypeScript: the recorded example, what other ports expect, each feature."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_factory import small_vocabulary

from hybrid_k2.errors import TokenizerError
from hybrid_k2.text import ChatTemplate, Tokenizer
from hybrid_k2.text.typescript_tools import typescript_declaration


def function(name: str, description: str | None = None, **parameters: Any) -> dict[str, Any]:
    told = {} if description is None else {"description": description}
    return {"type": "function", "function": {"name": name, **told, "parameters": parameters}}


def of_fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def fields(**properties: Any) -> str:
    """What the braces hold where every field is required."""
    text = typescript_declaration([function("f", **of_fields(list(properties), **properties))])
    assert text is not None
    head, tail = (
        "# Tools\n\n## functions\nnamespace functions {\ntype f = (_: {\n",
        "\n}) => any;\n}\n",
    )
    assert text.startswith(head) and text.endswith(tail)
    return text.removeprefix(head).removesuffix(tail)


GET_WEATHER = function(
    "get_weather",
    "Desc",
    **of_fields(
        ["city"],
        unit={"type": "string", "enum": ["c", "f"]},
        days={"type": "integer", "minimum": 1},
        city={"type": "string", "description": "Name of the city"},
    ),
)
GET_WEATHER_TEXT = """\
# Tools

## functions
namespace functions {
// Desc
type get_weather = (_: {
  // Name of the city
  city: string,
  // minimum: 1
  days?: number,
  unit?: "c" | "f"
}) => any;
}
"""


def test_the_recorded_example_is_written_exactly() -> None:
    assert typescript_declaration([GET_WEATHER]) == GET_WEATHER_TEXT


def test_nested_objects_and_enums_are_written_as_other_ports_write_them() -> None:
    user = of_fields(["name"], name={"type": "string"}, age={"type": "integer"})
    tool = function("create_user", "Create a new user record.", **of_fields(["user"], user=user))
    assert typescript_declaration([tool]) == (
        "# Tools\n\n## functions\nnamespace functions {\n// Create a new user record.\n"
        "type create_user = (_: {\n  user: {\n    name: string,\n    age?: number\n  }\n"
        "}) => any;\n}\n"
    )
    status = {"enum": ["active", "paused", "done"]}
    assert typescript_declaration(
        [function("set_status", **of_fields(["status"], status=status))]
    ) == (
        "# Tools\n\n## functions\nnamespace functions {\ntype set_status = (_: {\n"
        '  status: "active" | "paused" | "done"\n}) => any;\n}\n'
    )


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "  x: string"),
        ({"type": "integer"}, "  x: number"),
        ({"type": "boolean"}, "  x: boolean"),
        ({"type": "null"}, "  x: null"),
        ({}, "  x: any"),
        (True, "  x: any"),
        ({"type": "object"}, "  x: {}"),
        ({"type": "array"}, "  x: Array<any>"),
        ({"type": "array", "items": {"type": "integer"}}, "  x: Array<number>"),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
            "  x: Array<Array<string>>",
        ),
        ({"type": ["string", "integer", "null"]}, "  x: string | number | null"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "  x: string | null"),
        ({"enum": ["a", 1, None, True]}, '  x: "a" | 1 | None | True'),
        ({"type": ["string", "null"], "enum": ["a", None]}, '  x: "a" | None'),
        (
            {"type": "string", "description": "one\n\ntwo", "maxLength": 9, "pattern": "^a"},
            "  // one\n\n  // two\n  // maxLength: 9, pattern: ^a\n  x: string",
        ),
        (
            {"type": "number", "maximum": 1.5, "minimum": 0, "default": 0.5},
            "  // maximum: 1.5, minimum: 0\n  // Default: 0.5\n  x: number",
        ),
        ({"type": "string", "default": "é"}, '  // Default: "é"\n  x: string'),
        ({"type": "boolean", "default": False}, "  // Default: False\n  x: boolean"),
        ({"type": "array", "default": [1, "a"]}, '  // Default: [1, "a"]\n  x: Array<any>'),
        ({"type": "string", "default": None}, "  x: string"),
        (
            {"type": "array", "minItems": 1, "items": {"type": "string", "description": "d"}},
            "  // minItems: 1\n  x: Array<\n    // d\n    string\n  >",
        ),
        (
            {"type": "array", "items": of_fields(["b"], a={"type": "string"}, b={"enum": [1]})},
            "  x: Array<{\n    b: 1,\n    a?: string\n  }>",
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            "  x: {\n    [k: string]: number\n  }",
        ),
        (
            {**of_fields([], a={"type": "string"}), "additionalProperties": False},
            "  x: {\n    a?: string,\n    [k: string]: never\n  }",
        ),
    ],
)
def test_every_feature_of_a_schema_has_its_text(schema: Any, expected: str) -> None:
    assert fields(x=schema) == expected


def test_required_fields_come_first_and_both_kinds_by_name() -> None:
    names = ["d", "c", "b", "a"]
    tool = function("f", **of_fields(["d", "b"], **{n: {"type": "null"} for n in names}))
    text = typescript_declaration([tool])
    assert text is not None
    assert "  b: null,\n  d: null,\n  a?: null,\n  c?: null\n" in text


def test_definitions_become_interfaces_before_the_function() -> None:
    node = {**of_fields([], next={"$ref": "#/$defs/Node"}), "description": "A node"}
    parameters = {**of_fields(["n"], n={"$ref": "#/$defs/Node"}), "$defs": {"Node": node}}
    text = typescript_declaration([function("f", "Walks", **parameters)])
    assert text is not None
    assert "{\n// A node\ninterface Node {\n  next?: Node\n}\n// Walks\ntype f = (_: {\n" in text
    assert "  n: Node\n}) => any;" in text


def test_parameters_that_contain_themselves_are_an_interface() -> None:
    text = typescript_declaration([function("f", **of_fields([], child={"$ref": "#"}))])
    assert text is not None
    assert (
        "interface parameters {\n  child?: parameters\n}\ntype f = (_: parameters) => any;" in text
    )


def test_functions_follow_each_other_and_other_tools_are_left_out() -> None:
    tools = [{"type": "web_search"}, function("f"), {"type": "function"}, function("g", "G")]
    text = typescript_declaration(tools)
    assert text is not None
    assert text.endswith("{\ntype f = (_: {}) => any;\n// G\ntype g = (_: {}) => any;\n}\n")


UNSUPPORTED = [
    {"oneOf": [{"type": "string"}]},
    {"$ref": "#/$defs/missing"},
    {"$ref": "http://example.org/schema"},
    {"type": ["string", "tuple"]},
    {"type": "string", "enum": [1]},
    {"type": "object", "properties": ["a"]},
    {"type": "string", "description": 3},
    3,
]
NO_JSON = [{"type": "string", "default": {1}}, {"type": "integer", "maximum": 10**5000}]


@pytest.mark.parametrize("schema", UNSUPPORTED, ids=str)
def test_what_cannot_be_said_in_typescript_is_declared_as_json(schema: Any) -> None:
    tools = [GET_WEATHER, function("f", **of_fields([], x=schema))]
    assert typescript_declaration(tools) is None
    template = ChatTemplate(Tokenizer(small_vocabulary(thinking=True, media=True)), "k2.5")
    text = template.render_text([{"role": "user", "content": "hi"}], tools)
    assert text.startswith('<|im_system|>tool_declare<|im_middle|>[{"function":{"description":"De')


@pytest.mark.parametrize("schema", NO_JSON, ids=["set", "number"])
def test_a_value_that_json_cannot_say_is_an_error_that_names_the_tools(schema: Any) -> None:
    template = ChatTemplate(Tokenizer(small_vocabulary(thinking=True, media=True)), "k2.5")
    with pytest.raises(TokenizerError, match="tools cannot be written as JSON"):
        template.render(
            [{"role": "user", "content": "hi"}], [function("f", **of_fields([], x=schema))]
        )


def test_only_k25_is_told_of_its_tools_in_typescript() -> None:
    tokenizer = Tokenizer(small_vocabulary(thinking=True, media=True))
    for variant, begin in (("k2.5", GET_WEATHER_TEXT), ("thinking", "[{"), ("instruct", "[{")):
        template = ChatTemplate(tokenizer, variant)
        text = template.render_text([{"role": "user", "content": "hi"}], [GET_WEATHER])
        assert text.startswith(f"<|im_system|>tool_declare<|im_middle|>{begin}")
    text = template.render_text([{"role": "user", "content": "hi"}], [{"type": "web_search"}])
    assert 'tool_declare<|im_middle|>[{"type":"web_search"}]<|im_end|>' in text


SCHEMA_KEYS = st.sampled_from(
    "type properties required items enum anyOf $ref $defs description default "
    "additionalProperties minimum x string object array".split()
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(SCHEMA_KEYS, v, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": values})))
def test_no_declaration_raises(tools: list[Any]) -> None:
    text = typescript_declaration(tools)
    assert text is None or text.startswith("# Tools\n")


def test_a_schema_deeper_than_python_recurses_is_declared_otherwise() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"type": "array", "items": schema}
    assert typescript_declaration([function("f", **of_fields([], x=schema))]) is None

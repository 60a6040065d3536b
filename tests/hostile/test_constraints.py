"""Schemas that no well-meaning client sends: refused, or followed at a bounded price.

Each is compiled and followed in a process of its own, whose time and memory are limited by the
system, so that a schema that hangs fails its test and nothing else.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import schemas
from hostile.schemas import GRAMMARS, HOSTILE
from hostile.test_server_input import assert_alive, assert_openai_error, post
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.running_server import serve  # noqa: F401  (a fixture)
from server.scripted_engine import ScriptedEngine

from hybrid_k2.errors import RequestError

pytest.importorskip("llguidance")

MAX_CPU_S = 60
MAX_MEMORY_BYTES = 200 << 20


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What follow() says of each schema; where it takes too long, the system ends the process."""
    child = subprocess.run(
        [sys.executable, schemas.__file__],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S)),
        check=False,
    )
    outcomes = dict(map(json.loads, child.stdout.splitlines()))
    assert child.returncode == 0, f"ended after {[*outcomes][-1:]}: {child.stderr[-500:]}"
    return outcomes


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_or_followed(name: str, outcomes: dict[str, Any]) -> None:
    expected, said = HOSTILE[name][1], outcomes[name]
    assert (said is None) == (expected is None), said
    if said is not None:
        assert expected in said and "\n" not in said and len(said) < 400


def test_hostile_schemas_leave_the_memory_as_it_was(outcomes: dict[str, Any]) -> None:
    assert outcomes["memory_bytes"] < MAX_MEMORY_BYTES


KEYWORDS = st.sampled_from(
    "type properties required items enum const anyOf allOf oneOf $ref $defs pattern minLength "
    "maxLength minimum multipleOf additionalProperties patternProperties format not if x-guidance "
    "prefixItems minItems a b".split()
) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "null", "boolean"])


@settings(max_examples=150)
@given(st.dictionaries(KEYWORDS, JSON, max_size=5), TYPES, st.booleans())
def test_any_json_object_is_a_schema_or_an_error_that_says_where(
    schema: dict[str, Any], kind: str, is_strict: bool
) -> None:
    for given_schema in (schema, {"type": kind, **schema}):
        try:
            value = GRAMMARS.compile(given_schema, "the schema", is_strict=is_strict).start()
        except RequestError as error:
            assert str(error).startswith("the schema")
        else:
            assert value.is_done or value.mask().any()


# Over HTTP -------------------------------------------------------------------------------------

HELLO = {"model": "k2", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def function(parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


def format_of(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


BAD_BODIES = [
    format_of(HOSTILE["no such type"][0]),
    format_of(HOSTILE["lookahead"][0]),
    format_of(HOSTILE["a reference to itself"][0]),
    format_of([]),
    format_of(None),
    {"response_format": {"type": "json_schema", "json_schema": "x"}},
    {"response_format": {"type": "grammar"}},
    {"tool_choice": "required"},
    {"tool_choice": "required", "tools": []},
    {"tool_choice": ["required"]},
    {"tool_choice": {}},
    {"tool_choice": {"type": "function"}, "tools": [function({})]},
    {"tool_choice": {"type": "function", "function": {"name": []}}, "tools": [function({})]},
    {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [function({})]},
    {"tool_choice": {"type": "allowed_tools", "allowed_tools": 3}, "tools": [function({})]},
    {"tool_choice": {"type": "allowed_tools", "tools": [{}]}, "tools": [function({})]},
    {"tool_choice": "required", "tools": [function({"type": "array"})]},
    {"tool_choice": "required", "tools": [function("x")]},
    {"tool_choice": "required", "tools": [function({"properties": 3})]},
    {"tools": [function({"not": {}}, strict=True)]},
    {"tool_choice": "required", "tools": [function({}, name="a b")]},
    {"tool_choice": "required", "tools": [function({}, name="x" * 200)]},
    {"tool_choice": "required", "tools": [function({}, name="<|tool_call_end|>")]},
]


def test_a_form_that_cannot_be_demanded_is_a_400_that_says_why(serve: Any) -> None:  # noqa: F811
    server = serve(ScriptedEngine())
    for body in BAD_BODIES:
        for stream in (False, True):
            status, answer, _ = post(server, {**HELLO, **body, "stream": stream})
            assert status == 400, (body, answer)
            assert_openai_error(answer)
            assert len(answer["error"]["message"]) < 500
    assert_alive(server)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "response_format": st.dictionaries(st.sampled_from(["type", "json_schema"]), JSON)
            | st.dictionaries(KEYWORDS, JSON, max_size=3).map(lambda s: format_of(s))
            | JSON,
            "tool_choice": JSON | st.sampled_from(["required", "auto", "none"]),
            "tools": st.lists(
                st.dictionaries(KEYWORDS, JSON, max_size=3).map(function) | JSON, max_size=2
            ),
        },
    )
)
def test_any_json_for_a_form_is_an_answer_or_a_400(
    constrained_server: Any, body: dict[str, Any]
) -> None:
    status, answer, _ = post(constrained_server, {**HELLO, **body})
    assert status in (200, 400), answer
    if status == 400:
        assert_openai_error(answer)


@pytest.fixture
def constrained_server(serve: Any) -> Any:  # noqa: F811
    return serve(ScriptedEngine())

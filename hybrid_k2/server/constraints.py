"""What a request demands of its answer's form: JSON, calls that fit their schemas, a call at all.

Reads the fields of all APIs in OpenAI's shape (`response_format`, `tool_choice`, strict tools) and
has them compiled, off the event loop, into the grammar that the engine holds the answer to. Knows
nothing of how a grammar works.
"""

import asyncio
import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid_k2.engine import SamplingParams
from hybrid_k2.engine.constraint import Grammar
from hybrid_k2.server.chat import Chat
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.service import Service
from hybrid_k2.text.answer_grammar import AnswerGrammar
from hybrid_k2.text.call_ids import CallIds
from hybrid_k2.text.json_grammar import JsonGrammar
from hybrid_k2.text.thinking_budget import ThinkingBudget

Tool = Mapping[str, Any]

# All schemas of a request; an agent's thirty tools take some 50 ms.
MAX_COMPILE_S = 10.0

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_TOOL_NAME = re.compile(r"[\w.-]{1,128}")


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema and what to call it in errors; is_strict: no part of it may be ignored."""

    schema: Any
    where: str
    is_strict: bool


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerForm:
    """arguments: for each tool that may be called.  content: None for free text."""

    arguments: Mapping[str, Schema]
    content: Schema | None
    must_call: bool
    parallel: bool


def answer_form(
    tools: Sequence[Tool],
    tool_choice: Any,
    response_format: Mapping[str, Any] | None,
    *,
    parallel_tool_calls: bool = True,
) -> AnswerForm | None:
    """Returns what is demanded, None where nothing is; raises ApiError 400 for what is unknown.

    tools: OpenAI's list of those offered.  tool_choice: "auto", "none", "required", or the object
    that names one function or allows some; of that and of response_format the form of
    /v1/responses will do, too.
    """
    must_call, names = _read_choice(tool_choice)
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    for name in names or ():
        if not isinstance(name, str) or name not in functions:
            raise _wrong("tool_choice", f"there is no tool {str(name)[:80]!r}")
    allowed = {n: f for n, f in functions.items() if names is None or n in names}
    if must_call and not allowed:
        raise _wrong("tool_choice", "demands a call, but there is no tool to call")
    content = _content_schema(response_format or {})
    has_strict = any(function.get("strict") is True for function in allowed.values())
    if not (must_call or has_strict or content is not None or names is not None):
        return None
    return AnswerForm(
        arguments={name: _arguments_schema(function) for name, function in allowed.items()},
        content=None if must_call else content,
        must_call=must_call,
        parallel=parallel_tool_calls and not _is_named(tool_choice),
    )


async def constrained(
    service: Service,
    form: AnswerForm | None,
    choices: Sequence[SamplingParams],
    chat: Chat,
) -> list[SamplingParams]:
    """Returns the choices with the grammar of the form, if any, and of the budget for thinking.

    chat: the conversation answered, which the template has rendered.
    Raises what is wrong with a schema, and a 400 for a budget that is no count.
    """
    grammar: Grammar | None = None
    if form is not None:
        if form.content is not None and chat.continues:
            raise _wrong("response_format", "an answer that is begun cannot be held to a form")
        grammar = await asyncio.to_thread(_compiled, service, form, chat)
    budget = chat.thinking_budget
    if budget is not None and budget < 0:
        raise _wrong("thinking_budget", f"is {budget}; it must be a number of tokens, 0 or more")
    if budget is not None and chat.begins_thinking(service):
        grammar = ThinkingBudget(service.engine.tokenizer, budget, grammar)
    if grammar is None:
        return list(choices)
    return [dataclasses.replace(params, grammar=grammar) for params in choices]


def _compiled(service: Service, form: AnswerForm, chat: Chat) -> AnswerGrammar:
    started_s = time.monotonic()

    def compiled(schema: Schema) -> JsonGrammar:
        if time.monotonic() - started_s > MAX_COMPILE_S:
            raise ApiError(400, f"the schemas take more than {MAX_COMPILE_S:g} s to compile")
        grammars = service.grammars
        return grammars.compile(schema.schema, schema.where, is_strict=schema.is_strict)

    return AnswerGrammar(
        service.engine.tokenizer,
        thinking=chat.begins_thinking(service),
        content=None if form.content is None else compiled(form.content),
        arguments={name: compiled(schema) for name, schema in form.arguments.items()},
        must_call=form.must_call,
        parallel=form.parallel,
        first_number=CallIds.after(chat.messages).count,
    )


def _is_named(choice: Any) -> bool:
    return isinstance(choice, Mapping) and choice.get("type") == "function"


def _read_choice(choice: Any) -> tuple[bool, list[Any] | None]:
    """Returns whether a tool must be called, and the names of those that may be, None for all."""
    if choice in (None, "auto", "none", "required"):
        return choice == "required", None
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return True, [_name_in(choice)]
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        tools = inner.get("tools") if isinstance(inner, Mapping) else None
        if isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools):
            return inner.get("mode") == "required", [_name_in(tool) for tool in tools]
    raise _wrong(
        "tool_choice",
        f"is {str(choice)[:80]!r}; must be 'auto', 'none', 'required' or the object that names a "
        "function",
    )


def _name_in(choice: Mapping[str, Any]) -> Any:
    """The name that one entry of tool_choice gives, in either form."""
    function = choice.get("function", choice)
    return function.get("name") if isinstance(function, Mapping) else None


def _content_schema(response_format: Mapping[str, Any]) -> Schema | None:
    kind, where = response_format.get("type", "text"), "the schema of response_format"
    if kind == "text":
        return None
    if kind == "json_object":  # with a schema where the client knows llama.cpp's server
        return Schema(response_format.get("schema") or _ANY_OBJECT, where, is_strict=False)
    if kind != "json_schema":
        shown = f"{str(kind)[:80]!r}; must be 'text', 'json_object' or 'json_schema'"
        raise _wrong("response_format", f"has type {shown}")
    given = response_format.get("json_schema", response_format)
    if not isinstance(given, Mapping) or given.get("schema") is None:
        raise _wrong("response_format", "has type 'json_schema' and no schema")
    return Schema(given["schema"], where, is_strict=given.get("strict") is True)


def _arguments_schema(function: Mapping[str, Any]) -> Schema:
    """The schema of a function's arguments, which are an object in any case."""
    name, schema = function["name"], function.get("parameters")
    if not _TOOL_NAME.fullmatch(name):
        raise _wrong(
            "tools",
            f"the name {name[:80]!r} cannot be held to: letters, digits, '_', '-' and '.', at most "
            "128",
        )
    where = f"the schema of tool {name!r}"
    kind = schema.get("type", "object") if isinstance(schema, Mapping) else "object"
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise _wrong("tools", f"{where} has type {str(kind)[:80]!r}; arguments are an object")
    if schema is None or isinstance(schema, Mapping):
        schema = {**(schema or {}), **_ANY_OBJECT}
    return Schema(schema, where, is_strict=function.get("strict") is True)


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param}: {what}", param=param)

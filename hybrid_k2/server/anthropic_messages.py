"""A conversation in Anthropic's blocks, rewritten as OpenAI's messages, which the template reads.

Owns what each kind of block becomes, and the removal of what an agent changes with every request
and no model should read. Knows nothing of HTTP or of answers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid_k2.server.anthropic_schemas import CountTokensRequest
from hybrid_k2.server.chat import Chat, token_count
from hybrid_k2.server.constraints import AnswerForm, answer_form
from hybrid_k2.server.errors import ApiError

# Arguments that are no JSON object travel in one under this key, as Anthropic's guide to streamed
# tools has it.
INVALID_JSON = "INVALID_JSON"

# Claude Code's first system block holds a hash that differs from request to request: left in, no
# prompt would share its beginning with the one before.
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")

# What a client tells Anthropic's servers of tools that it declares late; this one has them all.
_SILENT_BLOCKS = frozenset({"tool_addition", "tool_reference"})
_THINKING = {"enabled": True, "adaptive": True, "disabled": False}

Message = dict[str, Any]


def to_chat(body: CountTokensRequest) -> Chat:
    """The conversation; ApiError 400 naming the block that cannot be read.

    A last message of the assistant's is the beginning of the answer.
    """
    return Chat(
        messages=_to_messages(body),
        tools=_to_tools(body),
        thinking=_THINKING.get(str((body.thinking or {}).get("type"))),
        continues=body.messages[-1].get("role") == "assistant",
        thinking_budget=token_count((body.thinking or {}).get("budget_tokens")),
    )


def to_form(body: CountTokensRequest, tools: Sequence[Mapping[str, Any]]) -> AnswerForm | None:
    """What the answer must look like; tools: as to_chat gives them."""
    choice: Any = body.tool_choice or {}
    if choice.get("type") == "any":
        forced: Any = "required"
    elif choice.get("type") == "tool":
        forced = {"type": "function", "name": choice.get("name")}
    else:
        forced = None
    given = (body.output_config or {}).get("format")
    if given is not None and not isinstance(given, dict):
        raise _wrong("output_config.format", "must be an object")
    # Anthropic knows no format that is not strict.
    return answer_form(
        tools,
        forced,
        given and {**given, "strict": True},
        parallel_tool_calls=not choice.get("disable_parallel_tool_use"),
    )


def _to_messages(body: CountTokensRequest) -> list[Message]:
    messages: list[Message] = []
    if body.system is not None:
        system = _system_text(body.system, "system")
        messages += [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(body.messages):
        messages += _converted(message, f"messages.{index}")
    return messages


def _to_tools(body: CountTokensRequest) -> list[dict[str, Any]]:
    """OpenAI's tools for Anthropic's; those that Anthropic's own servers run are left out."""
    choice = {"type": "auto"} if body.tool_choice is None else body.tool_choice
    if choice.get("type") not in ("auto", "any", "tool", "none"):
        kind = str(choice.get("type"))[:80]
        raise _wrong("tool_choice.type", f"is {kind!r}; must be 'auto', 'any', 'tool' or 'none'")
    tools = [
        _tool(tool, f"tools.{index}")
        for index, tool in enumerate(body.tools or ())
        if is_function(tool)
    ]
    return [] if choice["type"] == "none" else tools


def is_function(tool: Mapping[str, Any]) -> bool:
    """Whether the client runs a tool, and not Anthropic."""
    return tool.get("type") in (None, "custom")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{where}.name", "must be a non-empty string")
    if not isinstance(schema, dict):
        raise _wrong(f"{where}.input_schema", "must be an object")
    function = {"name": name, "parameters": schema}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _converted(message: Mapping[str, Any], where: str) -> Iterator[Message]:
    role, content = message.get("role"), message.get("content")
    where = f"{where}.content"
    if role == "system":
        yield {"role": "system", "content": _system_text(content, where)}
    elif role == "assistant":
        yield _assistant_message(_blocks(content, where), where)
    elif role == "user":
        yield from _user_messages(_blocks(content, where), where)
    else:
        shown = f"{str(role)[:80]!r}; must be 'user', 'assistant' or 'system'"
        raise _wrong(where.removesuffix("content") + "role", f"is {shown}")


def _system_text(content: Any, where: str) -> str:
    texts = []
    for index, block in enumerate(_blocks(content, where)):
        texts.append(_BILLING_LINE.sub("", _text_of(block, f"{where}.{index}")))
    return "\n".join(filter(None, texts))


def _user_messages(blocks: Sequence[Mapping[str, Any]], where: str) -> Iterator[Message]:
    """A tool's result is a message of its own; the text between results stays between them."""
    texts: list[str] = []
    for index, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            texts.append(_text_of(block, f"{where}.{index}"))
            continue
        if texts:
            yield {"role": "user", "content": "\n".join(filter(None, texts))}
            texts = []
        yield _tool_message(block, f"{where}.{index}")
    if texts or not blocks:
        yield {"role": "user", "content": "\n".join(filter(None, texts))}


def _tool_message(block: Mapping[str, Any], where: str) -> Message:
    content = block.get("content")
    parts = [] if content is None else _blocks(content, f"{where}.content")
    text = "\n".join(_result_text(part, f"{where}.content.{i}") for i, part in enumerate(parts))
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _result_text(part: Mapping[str, Any], where: str) -> str:
    """A tool may return what K2 cannot read; a dialogue that has it must go on all the same."""
    if part.get("type") == "text":
        return _text_of(part, where)
    return f"[{str(part.get('type'))[:40]} left out: this model reads text only]"


def _assistant_message(blocks: Sequence[Mapping[str, Any]], where: str) -> Message:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text":
            texts.append(_text_of(block, f"{where}.{index}"))
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", f"{where}.{index}"))
        elif kind == "tool_use":
            calls.append(_call(block, f"{where}.{index}"))
        # Thoughts that only Anthropic can read and what its servers' tools did say nothing to K2.
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise _wrong(f"{where}.input", "must be an object")
    if arguments.keys() == {INVALID_JSON} and isinstance(arguments[INVALID_JSON], str):
        arguments = arguments[INVALID_JSON]
    function = {"name": _string(block, "name", where), "arguments": arguments}
    return {"id": _string(block, "id", where), "type": "function", "function": function}


def _blocks(content: Any, where: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        return content
    raise _wrong(where, "must be a string or a list of blocks")


def _text_of(block: Mapping[str, Any], where: str) -> str:
    kind, source = block.get("type"), block.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        return _string(source, "data", f"{where}.source")
    if isinstance(kind, str) and kind in _SILENT_BLOCKS:
        return ""
    if kind != "text":
        raise _wrong(where, f"has type {str(kind)[:80]!r}; this model reads text only")
    return _string(block, "text", where)


def _string(block: Mapping[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}", "must be a string")
    return value


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where}: {what}", param=where)

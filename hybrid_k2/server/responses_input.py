"""A Responses request's items as a Chat: messages, calls, their outputs and earlier reasoning.

One turn of the assistant's comes as several items, which are put together again, so that the prompt
is what the model wrote. Knows nothing of HTTP or of answers.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hybrid_k2.server.chat import Chat
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.responses_schemas import InputTokensRequest

# Clients that keep no reasoning text send back what they were given as its encrypted content. It is
# theirs anyway, so it travels in the open.
_REASONING_PREFIX = "hybrid-k2:"
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})

Item = Mapping[str, Any]
Message = dict[str, Any]


class ResponseTools:
    """The functions of a request; those of a namespace under a name that has both."""

    def __init__(self, tools: Sequence[Item]) -> None:
        """Raises ApiError 400 for a function without a name."""
        self.offered: list[Message] = []
        self.unknown: list[str] = []  # kinds that only OpenAI's own servers run
        self._origin: dict[str, tuple[str | None, str]] = {}
        self._add(tools, None, "tools")

    def origin(self, name: str) -> tuple[str | None, str]:
        """The namespace and name of a function by which the client knows it."""
        return self._origin.get(name, (None, name))

    def _add(self, tools: Any, namespace: str | None, where: str) -> None:
        for index, tool in enumerate(tools if isinstance(tools, list) else ()):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind == "namespace" and namespace is None:
                self._add(tool.get("tools"), _string(tool, "name", f"{where}[{index}]"), where)
            elif kind == "function":
                self._add_function(tool, namespace, f"{where}[{index}]")
            else:
                self.unknown.append(f"tool type {str(kind)[:60]!r}")

    def _add_function(self, tool: Item, namespace: str | None, where: str) -> None:
        name = _string(tool, "name", where)
        if not name:
            raise ApiError(400, f"{where}.name must not be empty", param=where)
        full_name = joined_name(namespace, name)
        self._origin[full_name] = (namespace, name)
        known = ("description", "parameters", "strict")
        given = {key: tool[key] for key in known if tool.get(key) is not None}
        self.offered.append({"type": "function", "function": {"name": full_name, **given}})


def joined_name(namespace: str | None, name: str) -> str:
    """One name for a function of a namespace, since K2's ids have no other place for it."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


def to_chat(body: InputTokensRequest, items: Iterable[Item], tools: ResponseTools) -> Chat:
    """The conversation of `items`, the request's own and what came before it."""
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    for message in _Messages(items):
        messages.append(message)
    effort = (body.reasoning or {}).get("effort")
    return Chat(
        messages=messages,
        tools=[] if body.tool_choice == "none" else tools.offered,
        thinking=None if effort is None else effort != "none",
    )


def input_items(body: InputTokensRequest) -> list[Item]:
    """The request's own items; a text is a user's message."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    return body.input


def unknown_items(items: Iterable[Item]) -> Iterator[str]:
    """The kinds of items that say nothing to this model."""
    for item in items:
        kind = _kind(item)
        if kind not in _READERS:
            yield f"input item {str(kind)[:60]!r}"


def encrypted(reasoning: str) -> str:
    """What a client sends back in a reasoning item that keeps no text."""
    return _REASONING_PREFIX + base64.b64encode(reasoning.encode()).decode()


class _Messages:
    """Iterates over the messages that items make."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self._turn: Message | None = None  # of the assistant, whose next item may belong to it

    def __iter__(self) -> Iterator[Message]:
        for index, item in enumerate(self._items):
            reader = _READERS.get(_kind(item))
            if reader is not None:
                yield from reader(self, item, f"input[{index}]")
        yield from self._end_of_turn()

    def message(self, item: Item, where: str) -> Iterator[Message]:
        role = item.get("role")
        text = _text(item.get("content"), f"{where}.content")
        if role == "assistant":
            yield from self._begin_unless_free("content", "tool_calls")
            self._current()["content"] = text
            return
        yield from self._end_of_turn()
        yield {"role": role, "content": text}  # the template says which roles there are

    def reasoning(self, item: Item, where: str) -> Iterator[Message]:
        yield from self._begin_unless_free("reasoning_content", "content", "tool_calls")
        self._current()["reasoning_content"] = _reasoning(item, where)

    def call(self, item: Item, where: str) -> Iterator[Message]:
        name = joined_name(item.get("namespace"), _string(item, "name", where))
        if item.get("type") == "custom_tool_call":
            arguments = json.dumps({"input": item.get("input")})
        else:
            arguments = _string(item, "arguments", where)
        call = {"id": _string(item, "call_id", where), "type": "function"}
        call["function"] = {"name": name, "arguments": arguments}
        self._current().setdefault("tool_calls", []).append(call)
        yield from ()

    def output(self, item: Item, where: str) -> Iterator[Message]:
        yield from self._end_of_turn()
        text = _result(item.get("output"), f"{where}.output")
        yield {"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": text}

    def _current(self) -> Message:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": ""}
        return self._turn

    def _begin_unless_free(self, *keys: str) -> Iterator[Message]:
        if self._turn is not None and any(self._turn.get(key) for key in keys):
            yield from self._end_of_turn()

    def _end_of_turn(self) -> Iterator[Message]:
        if self._turn is not None:
            yield self._turn
            self._turn = None


_READERS = {
    "message": _Messages.message,
    "reasoning": _Messages.reasoning,
    "function_call": _Messages.call,
    "custom_tool_call": _Messages.call,
    "function_call_output": _Messages.output,
    "custom_tool_call_output": _Messages.output,
}


def _kind(item: Item) -> Any:
    kind = item.get("type")
    if kind is None and "role" in item:
        return "message"
    return kind if isinstance(kind, str) else None


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be a string or a list of parts", param=where)
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "refusal":
        return _string(part, "refusal", where)
    if kind not in _TEXT_PARTS:
        shown = str(kind)[:80]
        raise ApiError(400, f"{where} has type {shown!r}; this model reads text only", param=where)
    return _string(part, "text", where)


def _result(output: Any, where: str) -> str:
    """A tool may return what K2 cannot read; a dialogue that has it must go on all the same."""
    if isinstance(output, list):
        texts = (
            _part(part, f"{where}[{index}]")
            if isinstance(part, dict) and part.get("type") in _TEXT_PARTS
            else "[a part that is no text was left out: this model reads text only]"
            for index, part in enumerate(output)
        )
        return "\n".join(texts)
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def _reasoning(item: Item, where: str) -> str:
    if item.get("content"):
        return _text(item["content"], f"{where}.content")
    kept = item.get("encrypted_content")
    if isinstance(kept, str) and kept.startswith(_REASONING_PREFIX):
        try:
            return base64.b64decode(kept.removeprefix(_REASONING_PREFIX), validate=True).decode()
        except ValueError:  # no ASCII, no base64, no UTF-8
            raise ApiError(400, f"{where}.encrypted_content is not this server's") from None
    return ""


def _string(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise ApiError(400, f"{where}.{key} must be a string", param=f"{where}.{key}")
    return value

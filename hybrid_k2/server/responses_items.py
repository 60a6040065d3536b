"""An answer's text and calls as the output items of a Response: as events, and as what they give.

Items follow one another; each is added, filled and done before the next. Knows nothing of requests,
HTTP or engines.
"""

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from hybrid_k2.server.responses_input import ResponseTools, encrypted
from hybrid_k2.text import Delta
from hybrid_k2.text.tool_calls import CallArguments, CallDelta, CallEnd, CallStart

Event = dict[str, Any]

_PART_OF_ITEM = {"message": "output_text", "reasoning": "reasoning_text"}


class OutputItems:
    """Makes response.output_* events of one answer; push() all deltas in order, then finish()."""

    def __init__(self, tools: ResponseTools, with_encrypted_reasoning: bool = False) -> None:
        """with_encrypted_reasoning: for clients that send no reasoning text back, but this."""
        self.output: list[dict[str, Any]] = []
        self._tools = tools
        self._with_encrypted = with_encrypted_reasoning
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []  # of the message that is open
        self._new_logprobs: list[dict[str, Any]] = []  # not in an event yet

    def push(
        self, deltas: Iterable[Delta | CallDelta], logprobs: Iterable[dict[str, Any]] = ()
    ) -> Iterator[Event]:
        """logprobs: of the message's tokens; they go out with its next text."""
        self._new_logprobs += logprobs
        for delta in deltas:
            if isinstance(delta, CallStart):
                yield from self._begin_call(delta)
            elif isinstance(delta, CallArguments):
                self._text.append(delta.text)
                yield self._event("response.function_call_arguments.delta", delta=delta.text)
            elif isinstance(delta, CallEnd):
                yield from self.finish("completed" if delta.is_complete else "incomplete")
            elif isinstance(delta, Delta):
                yield from self._push_text(delta)

    def finish(self, status: str = "completed") -> Iterator[Event]:
        """Ends the item that is open, if one is."""
        item, text = self._open, "".join(self._text)
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            yield self._event(
                "response.function_call_arguments.done", name=item["name"], arguments=text
            )
        else:
            yield from self._end_text(item, text)
        yield {"type": "response.output_item.done", "output_index": self._index, "item": item}
        self._open, self._text = None, []

    @property
    def _index(self) -> int:
        return len(self.output) - 1

    def _push_text(self, delta: Delta) -> Iterator[Event]:
        kind = "reasoning" if delta.channel == "reasoning" else "message"
        if self._open is None or self._open["type"] != kind:
            yield from self.finish()
            yield from self._begin_text(kind)
        self._text.append(delta.text)
        name = f"response.{_PART_OF_ITEM[kind]}.delta"
        yield self._part_event(name, delta=delta.text, **self._of_delta(kind))

    def _of_delta(self, kind: str) -> dict[str, list[Any]]:
        """The logprobs that have waited for a text of the message."""
        if kind != "message":
            return {}
        new, self._new_logprobs = self._new_logprobs, []
        self._logprobs += new
        return {"logprobs": new}

    def _begin_text(self, kind: str) -> Iterator[Event]:
        if kind == "message":
            item = {"id": _new_id("msg"), "type": kind, "role": "assistant", "content": []}
        else:
            item = {"id": _new_id("rs"), "type": kind, "summary": [], "content": []}
        yield from self._begin(item)
        yield self._part_event("response.content_part.added", part=_part(kind, "", []))

    def _begin_call(self, start: CallStart) -> Iterator[Event]:
        yield from self.finish()
        namespace, name = self._tools.origin(start.name)
        item = {"id": _new_id("fc"), "type": "function_call", "call_id": start.id}
        item |= {"name": name, "arguments": ""}
        if namespace is not None:
            item["namespace"] = namespace
        yield from self._begin(item)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self._open = {**item, "status": "in_progress"}
        self.output.append(self._open)
        added = dict(self._open)  # as it is now: events may be kept
        yield {"type": "response.output_item.added", "output_index": self._index, "item": added}

    def _end_text(self, item: dict[str, Any], text: str) -> Iterator[Event]:
        kind = item["type"]
        part = _part(kind, text, self._logprobs)
        item["content"] = [part]
        if kind == "reasoning" and self._with_encrypted:
            item["encrypted_content"] = encrypted(text)
        more = {"logprobs": self._logprobs} if kind == "message" else {}
        yield self._part_event(f"response.{_PART_OF_ITEM[kind]}.done", text=text, **more)
        self._logprobs = []
        yield self._part_event("response.content_part.done", part=part)

    def _part_event(self, kind: str, **more: Any) -> Event:
        return self._event(kind, content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        assert self._open is not None
        return {
            "type": kind,
            "item_id": self._open["id"],
            "output_index": self._index,
            **more,
        }


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"type": _PART_OF_ITEM[kind], "text": text}
    return {**part, "annotations": [], "logprobs": logprobs} if kind == "message" else part


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"

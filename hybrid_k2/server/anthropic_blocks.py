"""An answer's text and calls as Anthropic's content blocks: as events, and as the blocks they give.

Blocks follow one another; each is opened, filled and closed before the next. Knows nothing of
messages, HTTP or engines.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from hybrid_k2.server.anthropic_messages import INVALID_JSON
from hybrid_k2.text import Delta
from hybrid_k2.text.tool_calls import CallArguments, CallDelta, CallEnd, CallStart

log = logging.getLogger(__name__)

Event = dict[str, Any]


class BlockEvents:
    """Makes content_block_* events of one answer; push() all deltas in order, then finish()."""

    def __init__(self) -> None:
        self._index = 0
        self._open: str | None = None
        self._thought = hashlib.sha256()

    def push(self, deltas: Iterable[Delta | CallDelta]) -> Iterator[Event]:
        for delta in deltas:
            if isinstance(delta, CallStart):
                start = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
                yield from self._begin(start)
            elif isinstance(delta, CallArguments):
                yield self._delta("input_json_delta", partial_json=delta.text)
            elif isinstance(delta, CallEnd):
                yield from self.finish()
            elif isinstance(delta, Delta) and delta.channel == "reasoning":
                if self._open != "thinking":
                    yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
                self._thought.update(delta.text.encode())
                yield self._delta("thinking_delta", thinking=delta.text)
            elif isinstance(delta, Delta):
                if self._open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta("text_delta", text=delta.text)

    def finish(self) -> Iterator[Event]:
        """Closes the block that is open, if one is."""
        if self._open is None:
            return
        if self._open == "thinking":
            # Clients drop thoughts without a signature. K2's need none to be read again.
            yield self._delta("signature_delta", signature=self._thought.hexdigest())
        yield {"type": "content_block_stop", "index": self._index}
        self._open = None
        self._index += 1

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self.finish()
        self._open = block["type"]
        self._thought = hashlib.sha256()
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, **value: str) -> Event:
        delta = {"type": kind, **value}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def whole_blocks(deltas: Iterable[Delta | CallDelta]) -> list[dict[str, Any]]:
    """The content of a message that is not streamed: a call that was cut off is left out."""
    deltas = list(deltas)
    cut = {d.index for d in deltas if isinstance(d, CallEnd) and not d.is_complete}
    whole = (d for d in deltas if isinstance(d, Delta) or getattr(d, "index", None) not in cut)
    events = BlockEvents()
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, list[str]] = {}
    for event in (*events.push(whole), *events.finish()):
        index = event["index"]
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            _, (key, value) = event["delta"].items()
            if key == "partial_json":
                arguments.setdefault(index, []).append(value)
            else:
                blocks[index][key] += value
    for index, pieces in arguments.items():
        blocks[index]["input"] = _parsed("".join(pieces))
    return blocks


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments)
        # What Python reads beyond JSON (NaN, half a surrogate pair) could not be sent.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    log.warning("a call's arguments are no JSON object; they go out as %s", INVALID_JSON)
    return {INVALID_JSON: arguments}

"""Server-sent events: how an answer's chunks go over the wire, and stop when nobody reads them.

Knows nothing of what the chunks say.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hybrid_k2.server.disconnect import ClientGoneError, run_until_disconnect

log = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold tokens back
}


def named_event(payload: Mapping[str, Any]) -> str:
    """One event whose name is its payload's `type`, as Anthropic's are."""
    return f"event: {payload['type']}\n{data_event(payload)}"


def data_event(payload: Any) -> str:
    """One event with a JSON payload, which JSON keeps on one line."""
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"


class SseResponse(StreamingResponse):
    """A response of events; calls `close` when they have ended or the client has gone.

    keep_alive: the event sent wherever nothing came for `keep_alive_s`.
    """

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        keep_alive_s: float,
        close: Callable[[], None],
        keep_alive: str = KEEP_ALIVE,
    ) -> None:
        self._events = _with_keep_alive(events, keep_alive_s, keep_alive)
        self._close = close
        super().__init__(self._events, headers=_HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await run_until_disconnect(receive, self.stream_response(send))
        except ClientGoneError:
            log.info("client closed the stream of %s", scope["path"])
        finally:
            await self._events.aclose()
            self._close()


async def _with_keep_alive(
    events: AsyncGenerator[str, None], interval_s: float, keep_alive: str
) -> AsyncGenerator[str, None]:
    """Fills silence: clients and proxies give up else."""
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            await asyncio.wait({pending}, timeout=interval_s)
            if not pending.done():
                yield keep_alive
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield event
            pending = asyncio.ensure_future(anext(events))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()

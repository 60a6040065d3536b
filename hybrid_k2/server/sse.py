"""Server-sent events: how an answer's chunks go over the wire, and stop when nobody reads them.

Knows nothing of what the chunks say.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

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

    keep_alive: the event sent wherever nothing came for `keep_alive_s`: clients and proxies give up
    else.
    """

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        keep_alive_s: float,
        close: Callable[[], None],
        keep_alive: str = KEEP_ALIVE,
    ) -> None:
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._keep_alive = keep_alive
        self._close = close
        self._latest_s = 0.0
        super().__init__(events, headers=_HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await run_until_disconnect(receive, self.stream_response(send))
        except ClientGoneError:
            log.info("client closed the stream of %s", scope["path"])
        finally:
            await self._events.aclose()
            self._close()

    async def stream_response(self, send: Send) -> None:
        """Sends the events, and keep-alives from a task of their own: none is due for most."""

        async def sending(message: Message) -> None:
            self._latest_s = time.monotonic()
            await send(message)

        keeper = asyncio.create_task(self._fill_silence(sending))
        try:
            await super().stream_response(sending)
        finally:
            keeper.cancel()

    async def _fill_silence(self, send: Send) -> None:
        self._latest_s = time.monotonic()
        while True:
            silent_s = time.monotonic() - self._latest_s
            if silent_s < self._keep_alive_s:
                await asyncio.sleep(self._keep_alive_s - silent_s)
            else:
                body = self._keep_alive.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})

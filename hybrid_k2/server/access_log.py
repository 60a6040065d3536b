"""One line of log for each request, and the id that it shares with its response.

The line says who asked for what, how it ended, how long it took and how many tokens it was; never
what was said. Its parts are the record's `request` too, for a formatter that writes JSON. Knows
nothing of routes.
"""

import logging
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it
_QUIET_PATHS = frozenset({"/health", "/ready", "/v1/health", "/metrics"})  # asked all the time


class AccessLog:
    """ASGI middleware around everything that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line = _Line(scope)
        try:
            await self._app(scope, receive, line.sender(send))
        finally:
            line.write()


class _Line:
    """What is known of one request so far."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._id = f"req_{uuid.uuid4().hex}"
        self._started_s = time.perf_counter()
        self._status = CLIENT_CLOSED_REQUEST
        self._is_complete = False

    def sender(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                self._id = headers.get("request-id", self._id)
                headers["request-id"] = headers["x-request-id"] = self._id
                self._status = message["status"]
            await send(message)
            if message["type"] == "http.response.body":
                self._is_complete = not message.get("more_body", False)

        return sending

    def write(self) -> None:
        path = self._scope["path"]
        level = logging.DEBUG if path in _QUIET_PATHS else logging.INFO
        if not log.isEnabledFor(level):
            return
        client = self._scope.get("client") or ("",)
        parts: dict[str, Any] = {
            "id": self._id,
            "client": client[0],
            "agent": Headers(scope=self._scope).get("user-agent", "")[:80],
            "method": self._scope["method"],
            "path": path[:200],
            "status": self._status if self._is_complete else CLIENT_CLOSED_REQUEST,
            "seconds": round(time.perf_counter() - self._started_s, 3),
            **self._scope.get("state", {}).get("tokens", lambda: {})(),
        }
        text = " ".join(f"{name}={_shown(value)}" for name, value in parts.items())
        log.log(level, "%s", text, extra={"request": parts})


def _shown(value: object) -> str:
    """One word, whatever a client put into it: a log line stays a line."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else ascii(text)

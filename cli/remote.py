"""An OpenAI-compatible server as commands see it: JSON in, JSON or events out, errors as our own.

The standard library's client, which takes no proxy from the environment: most such servers are on
this machine or beside it. Knows nothing of what is asked.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

from hybrid_k2.errors import BadInputError, HybridK2Error

SILENT_S = 600.0  # reading a prompt of 100 K tokens may take minutes


class RemoteServer:
    """url: with or without /v1. api_key: sent as a bearer's."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raises BadInputError for what is no http URL."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise BadInputError(f"--url {url!r} is no address; give one as http://127.0.0.1:8000")
        self.root = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._is_https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = urlsplit(self.root).path
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def model_card(self, name: str | None = None) -> dict[str, Any]:
        """What the server says of a model, of its first where none is named."""
        cards = self.get("/v1/models").get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            raise HybridK2Error(f"{self.root} lists no models as OpenAI's API does")
        for card in cards:
            if name in (None, card.get("id")):
                return card
        ids = ", ".join(str(card.get("id")) for card in cards)
        raise BadInputError(f"{self.root} has no model {name!r}; it has: {ids or 'none'}")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path."""
        with self._response("GET", path, None) as response:
            return self._object(response.read())

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer; closing the iterator ends the request.

        Raises HybridK2Error where the server cannot be reached, refuses or breaks off.
        """
        with self._response("POST", path, {**body, "stream": True}) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = self._object(data)
                if "error" in event:
                    raise HybridK2Error(f"{self.root} failed: {_message(event)}")
                yield event
        raise HybridK2Error(f"{self.root} broke the answer off")

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        try:
            with closing(kind(self._host, self._port, timeout=SILENT_S)) as connection:
                text = None if body is None else json.dumps(body)
                connection.request(method, self._path + path, text, self._headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise self._refusal(path, response.status, response.read())
                yield response
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise HybridK2Error(
                f"cannot reach {self.root}: {reason}; is a server there?"
            ) from error

    def _refusal(self, path: str, status: int, raw: bytes) -> HybridK2Error:
        if status == 401:
            return BadInputError(f"{self.root} asks for a key; give the right one with --api-key")
        try:
            message = _message(json.loads(raw))
        except (ValueError, TypeError, KeyError, AttributeError):
            message = raw[:200].decode("utf-8", "replace").strip()
        kind = BadInputError if 400 <= status < 500 else HybridK2Error
        return kind(f"{self.root}{path} answers {status}: {message}")

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise HybridK2Error(f"{self.root} sent what is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise HybridK2Error(f"{self.root} sent {str(value)[:80]!r} in place of an object")
        return value


def _message(body: Any) -> str:
    """OpenAI's errors hold an object, some servers' a text."""
    error = body["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]

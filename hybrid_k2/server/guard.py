"""What is checked before any route runs: Host, Origin, API key, body size.

A page in a browser on this machine can reach a loopback server: by name, once its DNS entry points
here (rebinding), or with a plain form post. Host and Origin give both away. Knows no routes but the
ones that need no key.
"""

import hashlib
import hmac
import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.settings import ServerSettings

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(?::\d{1,5})?")
_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/v1/health"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """ASGI middleware: answers a request that may not pass, hands on every other one."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._names = {"localhost", settings.host.lower(), *map(str.lower, settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                key = self._check(scope["method"], scope["path"], Headers(scope=scope))
            except ApiError as error:
                await error.response(scope["path"])(scope, receive, send)
                return
            if len(self._keys) > 1:
                # What is cached answers sooner, so holders of different keys must not share it.
                scope.setdefault("state", {})["cache_salt"] = key.hex()
        await self._app(scope, receive, send)

    def _check(self, method: str, path: str, headers: Headers) -> bytes:
        """The digest of the request's key, empty where it needs none; raises what is wrong."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_allowed_host(hosts[0]):
            raise ApiError(
                403,
                f"Host {', '.join(hosts)[:100]!r} is not served here; allow it with --allowed-host",
                "permission_error",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and method not in _SAFE_METHODS:
            self._check_origin(origin, hosts[0])
        key = b""
        if self._keys and path not in _OPEN_PATHS:
            key = self._checked_key(headers)
        self._check_length(headers.get("content-length"))
        return key

    def _is_allowed_host(self, header: str) -> bool:
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        name = match.group(1).strip("[]").rstrip(".").lower()
        if name in self._names or name.endswith(".localhost"):
            return True
        address = _address(name)
        bound = _address(self._settings.host)
        if address is None:
            return False
        # An address cannot be rebound; bound to all of them, the server answers to each.
        return address.is_loopback or (bound is not None and bound.is_unspecified)

    def _check_origin(self, origin: str, host: str) -> None:
        own = (f"http://{host.lower()}", f"https://{host.lower()}")
        allowed = self._settings.cors_origins
        if origin.lower() not in (*own, *map(str.lower, allowed)) and "*" not in allowed:
            raise ApiError(
                403,
                f"requests from pages of {origin[:100]!r} are not served",
                "permission_error",
                code="origin_not_allowed",
            )

    def _checked_key(self, headers: Headers) -> bytes:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Digests have one length, so that the comparison's time says nothing of the key's.
        digest = _digest(given)
        # All of them are compared: the time does not say which one came close.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY' "
                "or 'x-api-key: KEY'",
                "authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return digest

    def _check_length(self, content_length: str | None) -> None:
        if content_length is not None and int(content_length) > self._settings.max_body_bytes:
            raise body_too_large(self._settings.max_body_bytes)


def body_too_large(max_bytes: int) -> ApiError:
    """The 413 for a request body above the limit."""
    return ApiError(
        413,
        f"the request body is larger than {max_bytes} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

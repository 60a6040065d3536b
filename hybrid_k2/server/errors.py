"""Errors as clients read them: one table from error class to status, one body shape for each API.

Owns statuses, types and codes. Of routes it knows which are Anthropic's, and nothing of what raised
an error.
"""

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hybrid_k2.errors import BadInputError, ContextLengthError, HybridK2Error, MissingPackageError

log = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
RETRY_AFTER_S = 5

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error with everything its HTTP answer needs; `extra` joins the body's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID_REQUEST,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = {"error": {**error, **(extra or {})}}

    def response(self, path: str) -> JSONResponse:
        """The answer to a request for `path`, in the shape of the API that it belongs to."""
        if path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/"):
            body = self.anthropic_body()
            return JSONResponse(
                body, self.status, {**self.headers, "request-id": body["request_id"]}
            )
        return JSONResponse(self.body, self.status, self.headers)

    def anthropic_body(self) -> dict[str, Any]:
        """The error as Anthropic's clients read it, with an id that the log has, too."""
        request_id = f"req_{uuid.uuid4().hex}"
        log.info("%s: status %d", request_id, self.status)
        other = INVALID_REQUEST if self.status < 500 else "api_error"
        error = {"type": _ANTHROPIC_TYPES.get(self.status, other), "message": str(self)}
        return {"type": "error", "error": error, "request_id": request_id}


def overloaded(message: str) -> ApiError:
    """The queue is full: 429, try again."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(429, message, "rate_limit_error", code="queue_full", headers=headers)


def unavailable(message: str, progress: Mapping[str, Any] | None = None) -> ApiError:
    """The server is loading its model, which `progress` shows, or going away: 503, try again."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(
        503, message, "unavailable_error", code="unavailable", headers=headers, extra=progress
    )


def server_error(message: str, status: int = 500) -> ApiError:
    """The same request would fail again, so OpenAI's clients are told not to repeat it."""
    return ApiError(
        status, message, "server_error", code="server_error", headers={"x-should-retry": "false"}
    )


def _context_overflow(error: ContextLengthError) -> ApiError:
    return ApiError(
        400,
        str(error),
        code="context_length_exceeded",
        param="messages",
        extra={"n_prompt_tokens": error.num_tokens, "n_ctx": error.context},
    )


# The first class that matches decides. What no line matches is a bug: its text may hold paths and
# addresses, so it goes to the log and not to the client.
_TABLE: tuple[tuple[type[Exception], Any], ...] = (
    (ApiError, lambda error: error),
    (ContextLengthError, _context_overflow),
    (MissingPackageError, lambda error: server_error(str(error))),
    (BadInputError, lambda error: ApiError(400, str(error))),
    (HybridK2Error, lambda error: server_error(str(error))),
    (Exception, lambda error: server_error("internal error; the server's log says more")),
)


def to_api_error(error: Exception) -> ApiError:
    """The HTTP answer to any error."""
    return next(convert(error) for kind, convert in _TABLE if isinstance(error, kind))


def install(app: FastAPI) -> None:
    """Makes every error of the app answer in its API's shape, the framework's own ones too."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response(request.url.path)

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        if error.status_code == 404:
            api_error = ApiError(404, f"there is no {where}", "not_found_error", code="not_found")
        elif error.status_code == 405:
            api_error = ApiError(405, f"{where} is not allowed", headers=error.headers)
        else:
            api_error = ApiError(error.status_code, str(error.detail), headers=error.headers)
        return api_error.response(request.url.path)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation_error(error.errors()).response(request.url.path)

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HybridK2Error, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, known)


def validation_error(errors: list[Any]) -> ApiError:
    """pydantic's findings as one 400; the first names the parameter."""
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"])
    return ApiError(400, f"{param}: {first['msg']}", param=param)

"""A request's JSON body, read within limits of size, time and depth, and checked against a schema.

Knows nothing of what the fields mean.
"""

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from hybrid_k2.server.errors import ApiError, validation_error
from hybrid_k2.server.guard import body_too_large
from hybrid_k2.server.settings import ServerSettings

MAX_DEPTH = 64

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(request: Request, schema: type[Schema], settings: ServerSettings) -> Schema:
    """The body as `schema`; raises ApiError saying what is wrong with it.

    Only application/json is read: a form of a foreign page cannot send that unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type is {kind[:100]!r}; send application/json")
    body = await _read_bytes(request, settings)
    return await asyncio.to_thread(_parse, body, schema)  # a large body takes a second


def body_docs(schema: type[BaseModel]) -> dict[str, Any]:
    """What /openapi.json says of a route whose body read_body reads."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def _read_bytes(request: Request, settings: ServerSettings) -> bytes:
    chunks, num_bytes = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > settings.max_body_bytes:
                    raise body_too_large(settings.max_body_bytes)
                chunks.append(chunk)
    except TimeoutError:
        message = f"the request body did not arrive within {settings.body_timeout_s:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(499, "the client closed the connection") from None
    return b"".join(chunks)


def _parse(body: bytes, schema: type[Schema]) -> Schema:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        _check_depth(value)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # malformed JSON, bytes that are not UTF-8, an endless integer
        raise ApiError(400, f"the request body is not valid JSON: {str(error)[:200]}") from None
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise validation_error(error.errors(include_url=False, include_input=False)) from None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = (
            [
                child
                for parent in level
                for child in (parent.values() if isinstance(parent, dict) else parent)
                if isinstance(child, dict | list)
            ]
            if isinstance(value, dict | list)
            else []
        )
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return ApiError(400, f"the request body is nested deeper than {MAX_DEPTH} levels")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")

"""Anthropic's routes: /v1/messages, streaming and not, and /v1/messages/count_tokens.

Owns the translation between Anthropic's fields and the engine's, and the order of a stream's
events. Knows nothing of sockets, threads or how text becomes tokens.
"""

import functools
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from hybrid_k2.engine import SamplingParams
from hybrid_k2.server.answer import Answer, Piece, Usage
from hybrid_k2.server.anthropic_blocks import BlockEvents, whole_blocks
from hybrid_k2.server.anthropic_messages import is_function, to_chat, to_form
from hybrid_k2.server.anthropic_schemas import IGNORED_FIELDS, CountTokensRequest, MessagesRequest
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.exchange import (
    IgnoredParts,
    check_model,
    count_prompt_tokens,
    respond,
    salt_of,
    start_chat,
)
from hybrid_k2.server.request_body import body_docs, read_body
from hybrid_k2.server.service import Service
from hybrid_k2.server.sse import named_event
from hybrid_k2.text import ChatTemplate

PING = {"type": "ping"}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# Moonshot's own endpoint for Anthropic's clients maps their range, whose default is 1.0, so.
_INSTRUCT_TEMPERATURE_SCALE = 0.6


def create_router(service: Service) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(prefix="/v1")
    messages = Messages(service)

    @router.post("/messages", openapi_extra=body_docs(MessagesRequest))
    async def create_message(request: Request) -> Response:
        body = await read_body(request, MessagesRequest, service.settings)
        return await messages.respond(request, body)

    @router.post("/messages/count_tokens", openapi_extra=body_docs(CountTokensRequest))
    async def count_tokens(request: Request) -> dict[str, int]:
        body = await read_body(request, CountTokensRequest, service.settings)
        return {"input_tokens": await messages.count(body)}

    return router


class Messages:
    """Answers POST /v1/messages, and counts what it would take."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ignored = IgnoredParts("messages")

    async def respond(self, request: Request, body: MessagesRequest) -> Response:
        """The whole message, or a response that streams it; errors before its first byte raise."""
        self._check(body)
        chat = to_chat(body)
        start = start_chat(
            self._service,
            chat,
            [_sampling_params(body, chat.template(self._service), self._service)],
            stop=body.stop_sequences or (),
            parallel_tool_calls=not (body.tool_choice or {}).get("disable_parallel_tool_use"),
            form=to_form(body, chat.tools),
            cache_salt=salt_of(request),
        )
        return await respond(
            request,
            self._service,
            start,
            functools.partial(_Message, self._service),
            stream=bool(body.stream),
            keep_alive=named_event(PING),
        )

    async def count(self, body: CountTokensRequest) -> int:
        """The tokens of the prompt that a request would give."""
        self._check(body)
        return await count_prompt_tokens(self._service, to_chat(body))

    def _check(self, body: CountTokensRequest) -> None:
        fields = (name for name in body.model_extra or () if name not in IGNORED_FIELDS)
        self._ignored.warn(f"field {name[:60]!r}" for name in fields)
        others = {str(tool["type"])[:60] for tool in body.tools or () if not is_function(tool)}
        self._ignored.warn(f"tool type {kind!r}" for kind in sorted(others))
        check_model(self._service, body.model)


class _Message:
    """One message on its way out."""

    def __init__(self, service: Service, answer: Answer) -> None:
        self._model = service.model_name
        self._answer = answer
        self._id = f"msg_{uuid.uuid4().hex}"

    async def whole(self) -> dict[str, Any]:
        """The message object."""
        pieces = [piece async for piece in self._answer.pieces()]
        content = whole_blocks(delta for piece in pieces for delta in piece.deltas)
        usage = _usage(self._answer.usage)
        return {**self._object(usage), "content": content, **_ending(pieces[-1])}

    async def events(self) -> AsyncGenerator[str, None]:
        """The events in Anthropic's order."""
        # What the prefix cache saves is known later; message_delta says it.
        usage = _usage(self._answer.usage)
        yield named_event({"type": "message_start", "message": self._object(usage)})
        yield named_event(PING)
        blocks = BlockEvents()
        async for piece in self._answer.pieces():
            for event in blocks.push(piece.deltas):
                yield named_event(event)
        for event in blocks.finish():
            yield named_event(event)
        usage = _usage(self._answer.usage)
        yield named_event({"type": "message_delta", "delta": _ending(piece), "usage": usage})
        yield named_event({"type": "message_stop"})

    def error_event(self, error: ApiError) -> str:
        return named_event(error.anthropic_body())

    def _object(self, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }


def _ending(last: Piece) -> dict[str, str | None]:
    """Why the message ended."""
    reason = _STOP_REASONS[last.finish_reason or "stop"]
    if reason == "end_turn" and last.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_string}
    return {"stop_reason": reason, "stop_sequence": None}


def _sampling_params(
    body: MessagesRequest, template: ChatTemplate, service: Service
) -> SamplingParams:
    temperature = body.temperature
    if temperature is None:
        temperature = template.default_temperature
    elif template.variant == "instruct" and service.settings.scale_temperature:
        temperature *= _INSTRUCT_TEMPERATURE_SCALE
    given = {"top_p": body.top_p, "top_k": body.top_k}
    given = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(temperature=temperature, max_tokens=body.max_tokens, **given)


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts input without what the cache gave."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }

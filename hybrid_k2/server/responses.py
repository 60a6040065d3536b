"""OpenAI's /v1/responses, streaming and not, and what can be asked of a Response afterwards.

Owns the translation between its fields and the engine's, and the order of a stream's events, which
is the one Codex needs. Knows nothing of sockets, threads or how text becomes tokens.
"""

import functools
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from hybrid_k2.engine import SamplingParams
from hybrid_k2.server.answer import Answer, Piece, Usage
from hybrid_k2.server.constraints import answer_form
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.exchange import (
    IgnoredParts,
    check_model,
    count_prompt_tokens,
    respond,
    salt_of,
    start_chat,
)
from hybrid_k2.server.openai_logprobs import logprob_objects
from hybrid_k2.server.request_body import body_docs, read_body
from hybrid_k2.server.responses_input import (
    Item,
    ResponseTools,
    input_items,
    to_chat,
    unknown_items,
)
from hybrid_k2.server.responses_items import Event, OutputItems
from hybrid_k2.server.responses_schemas import (
    IGNORED_FIELDS,
    InputTokensRequest,
    ResponsesRequest,
)
from hybrid_k2.server.responses_store import ResponseStore, StoredResponse
from hybrid_k2.server.service import Service
from hybrid_k2.server.sse import named_event
from hybrid_k2.text import ChatTemplate

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
_STATUSES = {"length": "incomplete", "abort": "cancelled"}


def create_router(service: Service) -> APIRouter:
    """The routes over one service, and the Responses that they remember."""
    router = APIRouter(prefix="/v1/responses")
    store = ResponseStore(service.settings.max_stored_responses)
    responses = Responses(service, store)

    @router.post("", openapi_extra=body_docs(ResponsesRequest))
    async def create_response(request: Request) -> Response:
        body = await read_body(request, ResponsesRequest, service.settings)
        return await responses.respond(request, body)

    @router.post("/input_tokens", openapi_extra=body_docs(InputTokensRequest))
    async def input_tokens(request: Request) -> dict[str, Any]:
        body = await read_body(request, InputTokensRequest, service.settings)
        return {"object": "response.input_tokens", "input_tokens": await responses.count(body)}

    @router.get("/{response_id}")
    async def retrieve(response_id: str) -> dict[str, Any]:
        return dict(store.get(response_id).response)

    @router.delete("/{response_id}")
    async def delete(response_id: str) -> dict[str, Any]:
        store.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/{response_id}/cancel")
    async def cancel(response_id: str) -> dict[str, Any]:
        if store.cancel(response_id):
            return {"id": response_id, "object": "response", "status": "cancelled"}
        return dict(store.get(response_id).response)

    return router


class Responses:
    """Answers POST /v1/responses, and counts what it would take."""

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        self._ignored = IgnoredParts("responses")

    async def respond(self, request: Request, body: ResponsesRequest) -> Response:
        """The whole Response, or one that streams it; errors before its first byte raise."""
        if body.background:
            raise ApiError(
                400, "background is not supported; stream the answer", param="background"
            )
        items, tools = self._read(body)
        chat = to_chat(body, items, tools)
        parallel = body.parallel_tool_calls is not False
        start = start_chat(
            self._service,
            chat,
            [_sampling_params(body, chat.template(self._service), self._service)],
            parallel_tool_calls=parallel,
            form=answer_form(
                chat.tools, body.tool_choice, _text_format(body), parallel_tool_calls=parallel
            ),
            cache_salt=salt_of(request),
        )
        shape = functools.partial(_Response, self._service, self._store, body, items, tools)
        return await respond(request, self._service, start, shape, stream=bool(body.stream))

    async def count(self, body: InputTokensRequest) -> int:
        """The tokens of the prompt that a request would give."""
        items, tools = self._read(body)
        return await count_prompt_tokens(self._service, to_chat(body, items, tools))

    def _read(self, body: InputTokensRequest) -> tuple[list[Item], ResponseTools]:
        """The conversation's items and the functions; raises where one cannot be read."""
        check_model(self._service, body.model)
        items = input_items(body)
        tools = ResponseTools(body.tools or ())
        fields = (name for name in body.model_extra or () if name not in IGNORED_FIELDS)
        self._ignored.warn(f"field {name[:60]!r}" for name in fields)
        self._ignored.warn((*tools.unknown, *unknown_items(items)))
        if body.previous_response_id is not None:
            previous = self._store.get(body.previous_response_id, "previous_response_id")
            items = [*previous.items, *items]
        return items, tools


class _Response:
    """One Response on its way out."""

    def __init__(
        self,
        service: Service,
        store: ResponseStore,
        body: ResponsesRequest,
        items: Sequence[Item],
        tools: ResponseTools,
        answer: Answer,
    ) -> None:
        self._model = service.model_name
        self._tokenizer = service.engine.tokenizer
        self._store = store
        self._body = body
        self._items = items
        self._answer = answer
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._output = OutputItems(tools, ENCRYPTED_REASONING in (body.include or ()))
        self._num_events = 0

    async def whole(self) -> dict[str, Any]:
        """The response object."""
        events = [event async for event in self._events()]
        return events[-1]["response"]

    async def events(self) -> AsyncGenerator[str, None]:
        """The events in the order in which OpenAI sends them."""
        async for event in self._events():
            yield self._named(event)

    def error_event(self, error: ApiError) -> str:
        failure = {"code": error.body["error"]["code"] or "server_error", "message": str(error)}
        return self._named({"type": "response.failed", "response": self._object("failed", failure)})

    async def _events(self) -> AsyncGenerator[Event, None]:
        self._store.started(self._id, self._answer.cancel)
        try:
            for name in ("created", "in_progress"):
                yield {"type": f"response.{name}", "response": self._object("in_progress")}
            async for piece in self._answer.pieces():
                for event in self._output.push(piece.deltas, self._logprobs(piece)):
                    yield event
            status = _STATUSES.get(piece.finish_reason or "", "completed")
            item_status = "completed" if status == "completed" else "incomplete"
            for event in self._output.finish(item_status):
                yield event
            response = self._object(status)
            if self._body.store is not False:
                conversation = [*self._items, *self._output.output]
                self._store.put(StoredResponse(response, conversation))
            # A cancelled Response ends as OpenAI's do: with nothing but its status.
            name = "incomplete" if status == "incomplete" else "completed"
            yield {"type": f"response.{name}", "response": response}
        finally:
            self._store.ended(self._id)

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        """Those of the message's text; markers around it are no part of it."""
        control_text = self._tokenizer.control_text
        content = piece.logprobs[piece.num_thought :]
        return logprob_objects(
            self._tokenizer, [entry for entry in content if control_text(entry[0]) is None]
        )

    def _named(self, event: Event) -> str:
        numbered = {**event, "sequence_number": self._num_events}
        self._num_events += 1
        return named_event(numbered)

    def _object(self, status: str, error: dict[str, str] | None = None) -> dict[str, Any]:
        body, is_over = self._body, status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._model,
            "output": list(self._output.output) if is_over else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": _usage(self._answer.usage) if is_over else None,
        }


def _sampling_params(
    body: ResponsesRequest, template: ChatTemplate, service: Service
) -> SamplingParams:
    max_tokens = body.max_output_tokens
    if max_tokens is None:
        max_tokens = service.settings.max_new_tokens
    given = {"temperature": template.default_temperature, "max_tokens": max_tokens}
    logprobs = body.top_logprobs
    if logprobs is None and LOGPROBS in (body.include or ()):
        logprobs = 0
    asked = {"temperature": body.temperature, "top_p": body.top_p, "logprobs": logprobs}
    given |= {name: value for name, value in asked.items() if value is not None}
    return SamplingParams(**given)


def _text_format(body: ResponsesRequest) -> dict[str, Any] | None:
    given = (body.text or {}).get("format")
    if given is not None and not isinstance(given, dict):
        raise ApiError(400, "text.format must be an object", param="text.format")
    return given


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

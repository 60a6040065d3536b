"""OpenAI's /v1/chat/completions, streaming and not.

Owns the translation between OpenAI's fields and the engine's. Knows nothing of sockets, threads or
how text becomes tokens.
"""

import functools
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from hybrid_k2.engine import RunningRequest
from hybrid_k2.engine.sampler import TokenLogprobs
from hybrid_k2.server.answer import Answer, Piece, Usage
from hybrid_k2.server.constraints import answer_form
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.exchange import IgnoredParts, check_model, respond, salt_of, start_chat
from hybrid_k2.server.openai_logprobs import logprob_objects
from hybrid_k2.server.openai_messages import to_chat, unknown_parts
from hybrid_k2.server.openai_sampling import sampling_choices
from hybrid_k2.server.openai_tools import tool_call_chunk, tool_call_object
from hybrid_k2.server.request_body import body_docs, read_body
from hybrid_k2.server.schemas import IGNORED_FIELDS, ChatCompletionRequest
from hybrid_k2.server.service import Service
from hybrid_k2.server.sse import DONE, data_event
from hybrid_k2.text.tool_calls import collect_calls


def create_router(service: Service) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(prefix="/v1")
    chat = ChatCompletions(service)

    @router.post("/chat/completions", openapi_extra=body_docs(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatCompletionRequest, service.settings)
        return await chat.respond(request, body)

    return router


class ChatCompletions:
    """Answers POST /v1/chat/completions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ignored = IgnoredParts("chat completions")

    async def respond(self, request: Request, body: ChatCompletionRequest) -> Response:
        """The whole answer, or a response that streams it; errors before its first byte raise."""
        self._warn_of_what_is_ignored(body)
        check_model(self._service, body.model)
        _check_supported(body)
        max_tokens = body.max_completion_tokens
        if max_tokens is None:
            max_tokens = body.max_tokens
        chat = to_chat(body)
        parallel_tool_calls = body.parallel_tool_calls is not False
        form = answer_form(
            chat.tools,
            body.tool_choice,
            body.response_format and body.response_format.model_dump(),
            parallel_tool_calls=parallel_tool_calls,
        )
        start = start_chat(
            self._service,
            chat,
            sampling_choices(
                self._service,
                body,
                chat.template(self._service),
                max_tokens=max_tokens,
                logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            ),
            stop=body.stop_strings,
            parallel_tool_calls=parallel_tool_calls,
            form=form,
            with_progress=bool(body.stream and body.return_progress),
            cache_salt=salt_of(request, body.cache_salt),
        )
        shape = functools.partial(_Chat, self._service, body)
        return await respond(request, self._service, start, shape, stream=bool(body.stream))

    def _warn_of_what_is_ignored(self, body: ChatCompletionRequest) -> None:
        fields = (name for name in body.model_extra or () if name not in IGNORED_FIELDS)
        self._ignored.warn(f"field {name[:60]!r}" for name in fields)
        self._ignored.warn(unknown_parts(body))


class _Chat:
    """One completion on its way out."""

    def __init__(self, service: Service, body: ChatCompletionRequest, answer: Answer) -> None:
        self._service = service
        self._body = body
        self._answer = answer
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._counts_all_the_time = bool(
            body.stream_options and body.stream_options.continuous_usage_stats
        )

    async def whole(self) -> dict[str, Any]:
        """The chat.completion object."""
        pieces: list[list[Piece]] = [[] for _ in range(self._body.n or 1)]
        async for piece in self._answer.pieces():
            pieces[piece.index].append(piece)
        return self._object(
            "chat.completion",
            [self._choice(index, parts) for index, parts in enumerate(pieces)],
            usage=usage_object(self._answer.usage),
            timings=timings_object(self._answer),
        )

    async def events(self) -> AsyncGenerator[str, None]:
        """The chunks as events."""
        for index in range(self._body.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for piece in self._answer.pieces():
            if piece.progress is not None:
                progress = self._progress(piece.progress)
                yield data_event(self._object("chat.completion.chunk", [], **progress))
            if piece.reasoning:
                yield self._chunk(piece.index, self._reasoning(piece.reasoning))
            if piece.content or piece.logprobs:
                logprobs = self._logprobs(piece.logprobs)
                yield self._chunk(piece.index, {"content": piece.content}, logprobs)
            for call in filter(None, map(tool_call_chunk, piece.calls)):
                yield self._chunk(piece.index, {"tool_calls": [call]})
            if piece.finish_reason:
                yield self._chunk(piece.index, {}, finish_reason=piece.finish_reason)
        if self._body.wants_usage_chunk:
            usage = usage_object(self._answer.usage)
            timings = timings_object(self._answer)
            last = self._object("chat.completion.chunk", [], usage=usage, timings=timings)
            yield data_event(last)
        yield DONE

    def error_event(self, error: ApiError) -> str:
        return data_event(error.body)

    def _progress(self, request: RunningRequest) -> dict[str, Any]:
        """How far the prompt is read, under llama.cpp's names."""
        time_ms = (time.perf_counter() - self._answer.timings.started_s) * 1e3
        return {
            "prompt_progress": {
                "total": request.num_prompt_tokens,
                "cache": request.num_cached_tokens,
                "processed": request.num_computed_tokens,
                "time_ms": round(time_ms),
            }
        }

    def _reasoning(self, text: str) -> dict[str, str]:
        """Reasoning under each name by which clients look for it."""
        return dict.fromkeys(self._service.settings.reasoning_fields, text)

    def _choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(piece.content for piece in pieces),
        }
        reasoning = "".join(piece.reasoning for piece in pieces)
        if reasoning:
            message |= self._reasoning(reasoning)
        calls = collect_calls(delta for piece in pieces for delta in piece.calls)
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [tool_call_object(call) for call in calls]
        logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        more = {"usage": usage_object(self._answer.usage)} if self._counts_all_the_time else {}
        return data_event(self._object("chat.completion.chunk", [choice], **more))

    def _object(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.model_name,
            "choices": choices,
            **more,
        }

    def _logprobs(
        self, entries: tuple[tuple[int, TokenLogprobs], ...]
    ) -> dict[str, list[Any] | None] | None:
        if not self._body.logprobs:
            return None
        content = logprob_objects(self._service.engine.tokenizer, entries)
        return {"content": content, "refusal": None}


def _check_supported(body: ChatCompletionRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")


def usage_object(usage: Usage) -> dict[str, Any]:
    """The usage of an answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def timings_object(answer: Answer) -> dict[str, float]:
    """How long an answer took, under llama.cpp's names: n are tokens, ms of reading or writing."""
    usage, timings = answer.usage, answer.timings
    first_s = timings.first_s or timings.started_s
    read_ms = (first_s - timings.started_s) * 1e3
    written_ms = ((timings.latest_s or first_s) - first_s) * 1e3
    num_read = usage.prompt_tokens - usage.cached_tokens
    num_written = max(usage.completion_tokens - 1, 0)  # the first comes with the reading
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": num_read,
        "prompt_ms": round(read_ms, 3),
        "prompt_per_second": round(num_read / read_ms * 1e3, 3) if read_ms else 0.0,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(written_ms, 3),
        "predicted_per_second": round(num_written / written_ms * 1e3, 3) if written_ms else 0.0,
    }

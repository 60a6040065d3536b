"""OpenAI's /v1/completions: a prompt goes on as it is, with no chat template around it.

Knows nothing of messages, tools or how text becomes tokens.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from hybrid_k2.engine.sampler import TokenLogprobs
from hybrid_k2.server.answer import Answer, Piece
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.exchange import IgnoredParts, check_model, respond, salt_of
from hybrid_k2.server.openai import usage_object
from hybrid_k2.server.openai_sampling import sampling_choices
from hybrid_k2.server.request_body import body_docs, read_body
from hybrid_k2.server.schemas import IGNORED_FIELDS, CompletionRequest
from hybrid_k2.server.service import Service
from hybrid_k2.server.sse import DONE, data_event

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def create_router(service: Service) -> APIRouter:
    """The route over one service."""
    router = APIRouter(prefix="/v1")
    ignored = IgnoredParts("completions")

    @router.post("/completions", openapi_extra=body_docs(CompletionRequest))
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest, service.settings)
        fields = (name for name in body.model_extra or () if name not in IGNORED_FIELDS)
        ignored.warn(f"field {name[:60]!r}" for name in fields)
        check_model(service, body.model)
        _check_supported(body)
        shape = functools.partial(_Completion, service, body)
        start = _start(service, body, salt_of(request, body.cache_salt))
        return await respond(request, service, start, shape, stream=bool(body.stream))

    return router


async def _start(service: Service, body: CompletionRequest, salt: str) -> Answer:
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    template = service.engine.template
    choices = sampling_choices(
        service, body, template, max_tokens=max_tokens, logprobs=body.logprobs
    )
    tokenizer = service.engine.tokenizer
    token_ids = _single_prompt(body)
    if isinstance(token_ids, str):
        token_ids = await asyncio.to_thread(
            tokenizer.encode, token_ids, max_tokens=service.core.context
        )
    return await Answer.start(
        service.thread,
        tokenizer,
        token_ids,
        choices,
        stop=body.stop_strings,
        tools=None,
        timeout_s=service.settings.request_timeout_s,
        cache_salt=salt,
    )


class _Completion:
    """One completion on its way out."""

    def __init__(self, service: Service, body: CompletionRequest, answer: Answer) -> None:
        self._model = service.model_name
        self._body = body
        self._answer = answer
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._tokenizer = service.engine.tokenizer
        self._num_chars = [0] * (body.n or 1)

    async def whole(self) -> dict[str, Any]:
        """The text_completion object."""
        pieces: list[list[Piece]] = [[] for _ in range(self._body.n or 1)]
        async for piece in self._answer.pieces():
            pieces[piece.index].append(piece)
        choices = []
        for index, parts in enumerate(pieces):
            logprobs = [entry for part in parts for entry in part.logprobs]
            text = self._echo() + "".join(map(_text, parts))
            choices.append(self._choice(index, text, logprobs, parts[-1].finish_reason))
        return self._object(choices, usage=usage_object(self._answer.usage))

    async def events(self) -> AsyncGenerator[str, None]:
        """The parts as events."""
        if echo := self._echo():
            for index in range(self._body.n or 1):
                yield data_event(self._object([self._choice(index, echo, (), None)]))
        async for piece in self._answer.pieces():
            choice = self._choice(piece.index, _text(piece), piece.logprobs, piece.finish_reason)
            yield data_event(self._object([choice]))
        if self._body.wants_usage_chunk:
            yield data_event(self._object([], usage=usage_object(self._answer.usage)))
        yield DONE

    def error_event(self, error: ApiError) -> str:
        return data_event(error.body)

    def _echo(self) -> str:
        """The prompt's text, where the answer is to begin with it."""
        prompt = _single_prompt(self._body) if self._body.echo else ""
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[tuple[int, TokenLogprobs]],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        shown = self._logprobs(index, logprobs) if self._body.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": finish_reason}

    def _logprobs(
        self, index: int, entries: Sequence[tuple[int, TokenLogprobs]]
    ) -> dict[str, list[Any]]:
        """The older API's lists, one element a token; offsets count the answer's characters."""
        tokens = [self._spelt(token_id) for token_id, _ in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._num_chars[index])
            self._num_chars[index] += len(token)
        top = [
            {self._spelt(token_id): logprob for token_id, logprob in logprobs.top}
            for _, logprobs in entries
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [logprobs.logprob for _, logprobs in entries],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _spelt(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def _object(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **more,
        }


def _text(piece: Piece) -> str:
    """Without a template around it, an answer has no part that is not its text."""
    return piece.reasoning + piece.content


def _single_prompt(body: CompletionRequest) -> str | list[int]:
    """The prompt, which may be the one element of a list."""
    prompt: Any = body.prompt
    is_batch = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return prompt[0] if is_batch else prompt


def _check_supported(body: CompletionRequest) -> None:
    unsupported = {
        "echo together with logprobs": body.echo and body.logprobs is not None,
        "suffix": body.suffix is not None,
        "best_of": (body.best_of or 1) > 1,
    }
    for name, is_asked in unsupported.items():
        if is_asked:
            param = name.split()[0]
            raise ApiError(400, f"{name} is not supported for completions", param=param)

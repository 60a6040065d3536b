"""One exchange, the same for every API: check the model's name, start an answer, send it off.

Owns what happens when the client goes. Knows nothing of any API's fields or shapes.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from hybrid_k2.engine import SamplingParams
from hybrid_k2.errors import ContextLengthError
from hybrid_k2.server.access_log import CLIENT_CLOSED_REQUEST
from hybrid_k2.server.answer import Answer
from hybrid_k2.server.chat import Chat
from hybrid_k2.server.constraints import AnswerForm, constrained
from hybrid_k2.server.disconnect import ClientGoneError, run_until_disconnect
from hybrid_k2.server.errors import ApiError, to_api_error
from hybrid_k2.server.service import Service
from hybrid_k2.server.sse import KEEP_ALIVE, SseResponse

log = logging.getLogger(__name__)

MAX_REMEMBERED_WARNINGS = 100
MAX_COUNTED_TOKENS = 1 << 20


class Reply(Protocol):
    """An answer in an API's shape."""

    async def whole(self) -> dict[str, Any]:
        """The answer as one JSON object."""

    def events(self) -> AsyncGenerator[str, None]:
        """The answer as server-sent events."""

    def error_event(self, error: ApiError) -> str:
        """The event that ends a stream whose answer failed, too late for a status."""


class IgnoredParts:
    """Warns once of each thing that requests of one API hold and the server does not know."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._warned: set[str] = set()

    def warn(self, things: Iterable[str]) -> None:
        for thing in things:
            if thing not in self._warned and len(self._warned) < MAX_REMEMBERED_WARNINGS:
                self._warned.add(thing)
                log.warning("%s of %s is not known here; ignored", thing, self._api)


async def respond(
    request: Request,
    service: Service,
    start: Coroutine[Any, Any, Answer],
    shape: Callable[[Answer], Reply],
    *,
    stream: bool,
    keep_alive: str = KEEP_ALIVE,
) -> Response:
    """The whole answer, or a response that streams it; errors before its first byte raise."""
    try:
        answer = await run_until_disconnect(request.receive, start)
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    request.state.tokens = answer.usage.counts  # for the log, once they are known
    reply = shape(answer)
    if stream:
        return SseResponse(
            _ending_in_error(reply), service.settings.keep_alive_s, answer.close, keep_alive
        )
    try:
        return JSONResponse(await run_until_disconnect(request.receive, reply.whole()))
    except ClientGoneError:
        log.info("client closed its request")
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        answer.close()


async def _ending_in_error(reply: Reply) -> AsyncGenerator[str, None]:
    events = reply.events()
    try:
        async for event in events:
            yield event
    except Exception as error:
        log.warning("a stream ended by an error", exc_info=error)
        yield reply.error_event(to_api_error(error))
    finally:
        await events.aclose()


async def start_chat(
    service: Service,
    chat: Chat,
    choices: Sequence[SamplingParams],
    *,
    stop: Sequence[str] = (),
    parallel_tool_calls: bool = True,
    form: AnswerForm | None = None,
    with_progress: bool = False,
    cache_salt: str = "",
) -> Answer:
    """Renders a conversation and hands it to the engine.

    Raises what the template finds wrong with it or the form demands in vain, and as Answer.start.
    """
    token_ids = await chat.prompt(service)
    choices = await constrained(service, form, choices, chat)
    return await Answer.start(
        service.thread,
        service.engine.tokenizer,
        token_ids,
        choices,
        stop=stop,
        thinking=chat.begins_thinking(service),
        tools=chat.tools,
        history=chat.messages,
        parallel_tool_calls=parallel_tool_calls,
        timeout_s=service.settings.request_timeout_s,
        with_progress=with_progress,
        cache_salt=cache_salt,
    )


def salt_of(request: Request, given: str | None = None) -> str:
    """Who shares cached prefixes with a request: holders of its key who give the same salt."""
    key = getattr(request.state, "cache_salt", "")
    return f"{key}/{given or ''}" if key or given else ""


async def count_prompt_tokens(service: Service, chat: Chat) -> int:
    """The tokens of a conversation, however many of them the context holds."""
    return len(await counted(chat.token_ids(service, MAX_COUNTED_TOKENS)))


async def counted(token_ids: Awaitable[list[int]]) -> list[int]:
    """What the work gives; a 400 where it is beyond counting."""
    try:
        return await token_ids
    except ContextLengthError:
        raise ApiError(400, f"the text has more than {MAX_COUNTED_TOKENS} tokens") from None


def check_model(service: Service, name: str | None) -> None:
    """Raises a 404 for the name of another model; None is this one."""
    if name is not None and name != service.model_name:
        raise ApiError(
            404,
            f"the model {name[:100]!r} does not exist; this server has {service.model_name!r}",
            "not_found_error",
            code="model_not_found",
            param="model",
        )

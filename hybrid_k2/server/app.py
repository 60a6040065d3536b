"""The application: guard, routes and error shapes put together.

    chat_page       /
    operations      /health  /ready  /metrics  /slots  /v1/cache
    models          /v1/models
    openai          /v1/chat/completions     completions  /v1/completions
    responses       /v1/responses            anthropic    /v1/messages
    tokens          /tokenize  /detokenize  /apply-template  /props

A request passes access_log, guard and request_body; an API's module makes a Chat of it, which
exchange hands to engine_thread and whose answer goes back through sse. Knows nothing of sockets or
processes; `cli/serve.py` runs it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from hybrid_k2.server import (
    anthropic,
    chat_page,
    completions,
    errors,
    models,
    openai,
    operations,
    responses,
    tokens,
)
from hybrid_k2.server.access_log import AccessLog
from hybrid_k2.server.guard import Guard
from hybrid_k2.server.service import Service


def create_app(service: Service) -> FastAPI:
    """The ASGI app over a service, which it closes when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)  # the step in progress may take seconds

    # The documentation pages would load scripts from another site; /openapi.json has it all.
    app = FastAPI(title="hybrid-k2", lifespan=lifespan, docs_url=None, redoc_url=None)
    errors.install(app)
    for api in (operations, models, openai, completions, responses, anthropic, tokens):
        app.include_router(api.create_router(service))
    app.include_router(chat_page.create_router())
    app.add_middleware(Guard, settings=service.settings)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(AccessLog)
    return app

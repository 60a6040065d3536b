"""The application: guard, routes and error shapes put together.

Knows nothing of sockets or processes; `cli/serve.py` runs it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from hybrid_k2.server import anthropic, completions, errors, models, openai, responses, tokens
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
    for api in (models, openai, completions, responses, anthropic, tokens):
        app.include_router(api.create_router(service))

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(service.health(), 200 if service.is_loaded else 503)

    app.add_middleware(Guard, settings=service.settings)
    return app

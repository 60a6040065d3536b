"""What runs the server asks: is it there, is it ready, what is it doing, what has it kept.

Knows nothing of prompts or answers.
"""

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from hybrid_k2.server.engine_totals import EngineTotals
from hybrid_k2.server.service import Service


def create_router(service: Service) -> APIRouter:
    """The routes over one service; those without /v1 answer while the model loads, too."""
    router = APIRouter()
    service.metrics.register(EngineTotals(service))

    @router.get("/health", operation_id="health")
    @router.get("/v1/health", include_in_schema=False)
    @router.get("/ready", operation_id="ready")
    async def health() -> Response:
        state = service.health()
        return JSONResponse(state, 200 if state["status"] == "ready" else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        # In a thread: the prefix cache's disk tier looks into its folder.
        text = await asyncio.to_thread(service.metrics.text, service.model_name)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @router.get("/slots")
    async def slots() -> list[dict[str, Any]]:
        return await service.thread.call(service.thread.slots)

    @router.get("/v1/cache")
    async def cache() -> dict[str, Any]:
        stats = await service.thread.call(service.core.cache_stats)
        return {"object": "cache", **dataclasses.asdict(stats)}

    @router.delete("/v1/cache")
    async def clear_cache() -> dict[str, Any]:
        await service.thread.call(service.core.clear_cache)
        return {"object": "cache", "deleted": True}

    return router

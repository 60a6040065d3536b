"""GET /v1/models and /v1/models/{id}, in OpenAI's shape or, for its clients, in Anthropic's.

Knows nothing of what the model answers.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from hybrid_k2.server.exchange import check_model
from hybrid_k2.server.service import Service


def create_router(service: Service) -> APIRouter:
    """The routes over one service, which answer while the model loads, too."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models(request: Request) -> dict[str, Any]:
        if _is_anthropics(request):
            only = service.model_name
            page = {"has_more": False, "first_id": only, "last_id": only}
            return {"data": [_anthropic_card(service)], **page}
        return {"object": "list", "data": [_card(service)]}

    @router.get("/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        check_model(service, name)
        return _anthropic_card(service) if _is_anthropics(request) else _card(service)

    return router


def _is_anthropics(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _card(service: Service) -> dict[str, Any]:
    card = {
        "id": service.model_name,
        "object": "model",
        "created": service.started,
        "owned_by": "hybrid-k2",
        "capabilities": ["completion", "chat", "tools"],
    }
    if service.is_loaded:
        card["max_model_len"] = service.core.context
        card["meta"] = {
            "n_ctx": service.core.context,
            "n_vocab": service.core.vocab_size,
        }
    return card


def _anthropic_card(service: Service) -> dict[str, Any]:
    created = datetime.fromtimestamp(service.started, UTC)
    return {
        "id": service.model_name,
        "type": "model",
        "display_name": service.model_name,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }

"""What clients ask besides answers: a text's tokens, tokens' text, a chat's prompt, the settings.

Knows nothing of the engine's work.
"""

import asyncio
import functools
import re
from typing import Any

from fastapi import APIRouter, Request

from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.exchange import MAX_COUNTED_TOKENS, counted
from hybrid_k2.server.request_body import body_docs, read_body
from hybrid_k2.server.schemas import DetokenizeRequest, TemplateRequest, TokenizeRequest
from hybrid_k2.server.service import Service

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which UTF-8 cannot spell


def create_router(service: Service) -> APIRouter:
    """The routes over one service, whose names and fields are vLLM's and llama.cpp's."""
    router = APIRouter()

    @router.post("/tokenize", openapi_extra=body_docs(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await read_body(request, TokenizeRequest, service.settings)
        token_ids = await _token_ids(service, body)
        answer = {"tokens": token_ids, "count": len(token_ids)}
        answer["max_model_len"] = service.core.context
        if body.return_token_strs:
            spelt = map(service.engine.tokenizer.token_bytes, token_ids)
            answer["token_strs"] = [token.decode("utf-8", "replace") for token in spelt]
        return answer

    @router.post("/detokenize", openapi_extra=body_docs(DetokenizeRequest))
    async def detokenize(request: Request) -> dict[str, str]:
        body = await read_body(request, DetokenizeRequest, service.settings)
        text = await asyncio.to_thread(service.engine.tokenizer.decode, body.tokens)
        return {"prompt": text, "content": text}

    @router.post("/apply-template", openapi_extra=body_docs(TemplateRequest))
    async def apply_template(request: Request) -> dict[str, str]:
        body = await read_body(request, TemplateRequest, service.settings)
        text = await asyncio.to_thread(
            service.engine.template.render_text,
            body.messages,
            body.tools,
            body.add_generation_prompt,
        )
        return {"prompt": _SURROGATES.sub("\ufffd", text)}

    @router.get("/props")
    async def props() -> dict[str, Any]:
        template = service.engine.template
        return {
            "model_alias": service.model_name,
            "total_slots": service.core.max_sequences,
            "default_generation_settings": {
                "n_ctx": service.core.context,
                "params": {"temperature": template.default_temperature},
            },
            "chat_template_variant": template.variant,
            "modalities": {"vision": False, "audio": False},
        }

    return router


async def _token_ids(service: Service, body: TokenizeRequest) -> list[int]:
    given = [value for value in (body.prompt, body.content, body.messages) if value is not None]
    if len(given) != 1:
        raise ApiError(400, "give one of prompt, content and messages", param="prompt")
    if isinstance(given[0], str):
        encode = service.engine.tokenizer.encode
        return await counted(asyncio.to_thread(encode, given[0], max_tokens=MAX_COUNTED_TOKENS))
    render = functools.partial(service.engine.template.render, max_tokens=MAX_COUNTED_TOKENS)
    return await counted(
        asyncio.to_thread(render, given[0], body.tools, body.add_generation_prompt)
    )

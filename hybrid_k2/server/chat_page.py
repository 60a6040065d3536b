"""The chat page at `/`: one HTML file, sent with a policy that lets it load nothing else.

Knows nothing of what the page does; it asks the API as every other client does.
"""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse


def create_router() -> APIRouter:
    """The route, which needs neither a model nor a key."""
    router = APIRouter()
    page = files("hybrid_k2.server").joinpath("chat_page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    # Claude Code asks HEAD / before anything else.
    @router.head("/", include_in_schema=False)
    @router.get("/")
    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers=headers)
        return PlainTextResponse("hybrid-k2 is running; the API is at /v1\n")

    return router


def content_policy(page: str) -> str:
    """Only the page's own script and style run, named by their hashes, and only this server is
    asked.
    """
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"

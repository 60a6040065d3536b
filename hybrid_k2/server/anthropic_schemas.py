"""The bodies of Anthropic's requests: types only; what messages hold is anthropic_messages' matter.

Unknown fields are kept aside, so that a newer client is not refused for one that changes nothing.
Knows nothing of how a request is answered.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from hybrid_k2.server.schemas import MAX_MESSAGES, MAX_STOPS, Messages, StopString, Tools


class CountTokensRequest(BaseModel):
    """POST /v1/messages/count_tokens: what of a request becomes the prompt."""

    model_config = ConfigDict(strict=True, extra="allow")

    messages: Messages
    model: str | None = None
    system: str | Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages. A null means what leaving the field out means."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


# Known to Anthropic's clients and without effect on one machine's answer: no warning is due.
IGNORED_FIELDS = frozenset(
    {
        "cache_control",
        "container",
        "context_management",
        "inference_geo",
        "mcp_servers",
        "metadata",
        "service_tier",
        "speed",
    }
)

"""The bodies of Responses requests: types only; what items hold is responses_input's matter.

Unknown fields are kept aside, so that a newer client is not refused for one that changes nothing.
Knows nothing of how a request is answered.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from hybrid_k2.server.schemas import MAX_MESSAGES, Tools

InputItems = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]


class InputTokensRequest(BaseModel):
    """POST /v1/responses/input_tokens: what of a request becomes the prompt."""

    model_config = ConfigDict(strict=True, extra="allow")

    input: str | InputItems
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None


class ResponsesRequest(InputTokensRequest):
    """POST /v1/responses. A null means what leaving the field out means."""

    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    metadata: dict[str, Any] | None = None


# Known to OpenAI's clients and without effect on one machine's answer: no warning is due.
IGNORED_FIELDS = frozenset(
    {
        "client_metadata",
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream_options",
        "truncation",
        "user",
    }
)

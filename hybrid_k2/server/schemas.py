"""The bodies of OpenAI's requests: types only; ranges are the engine's, messages the template's.

Unknown fields are kept aside, so that a newer client is not refused for one that changes nothing.
Knows nothing of how a request is answered.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_MESSAGES = 4096
MAX_TOOLS = 256
MAX_STOPS = 16

StopString = Annotated[str, Field(min_length=1, max_length=256)]
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    type: str = "text"


class GenerationRequest(BaseModel):
    """What chats and completions have in common. A null means what leaving the field out means."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    thinking_budget: int | None = None
    thinking_token_budget: int | None = None
    continue_final_message: bool | None = None
    return_progress: bool | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. `suffix` and `best_of` are known in order to be refused."""

    prompt: str | list[int] | Annotated[list[str] | list[list[int]], Field(max_length=1)]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TemplateRequest(BaseModel):
    """POST /apply-template."""

    model_config = ConfigDict(strict=True, extra="allow")

    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool = True


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, as vLLM (prompt) or llama.cpp (content) calls it, or a chat."""

    model_config = ConfigDict(strict=True, extra="allow")

    prompt: str | None = None
    content: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(strict=True, extra="allow")

    tokens: list[int]


# Known to OpenAI's clients and without effect on one machine's answer: no warning is due.
IGNORED_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "cache_prompt",
        "metadata",
        "modalities",
        "prediction",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "timings_per_token",
        "user",
        "verbosity",
    }
)

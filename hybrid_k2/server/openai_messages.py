"""A chat completion's request as a Chat: which fields of OpenAI's, vLLM's and Moonshot's mean what.

Knows nothing of HTTP, of sampling or of answers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hybrid_k2.server.chat import Chat, token_count
from hybrid_k2.server.openai_tools import offered_tools
from hybrid_k2.server.schemas import ChatCompletionRequest

# What a request may tell the template; the rest of its kwargs could only confuse it.
TEMPLATE_SWITCHES = frozenset({"thinking", "enable_thinking", "preserve_thinking"})
IGNORED_SWITCHES = frozenset({"reasoning_effort"})


def to_chat(body: ChatCompletionRequest) -> Chat:
    """The conversation a request asks to go on with; ApiError 400 for a tool that is none."""
    last = body.messages[-1]
    is_begun = body.continue_final_message is True or last.get("partial") is True
    return Chat(
        messages=[_with_reasoning(message) for message in body.messages],
        tools=offered_tools(body),
        thinking=_thinking(body),
        preserve_thinking=_switches(body).get("preserve_thinking") is True,
        continues=is_begun and last.get("role") == "assistant",
        thinking_budget=_thinking_budget(body),
    )


def unknown_parts(body: ChatCompletionRequest) -> Iterator[str]:
    """What of a request's inner objects has no effect here."""
    for tool in body.tools or ():
        if tool.get("type") != "function":
            yield f"tool type {str(tool.get('type'))[:60]!r}"
    for name in _switches(body).keys() - TEMPLATE_SWITCHES - IGNORED_SWITCHES:
        yield f"chat_template_kwargs key {name[:60]!r}"


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Clients send reasoning back under the name they read it by: vLLM's or everyone else's."""
    if message.get("reasoning_content") is None and isinstance(message.get("reasoning"), str):
        return {**message, "reasoning_content": message["reasoning"]}
    return message


def _thinking(body: ChatCompletionRequest) -> bool | None:
    """Moonshot's `thinking`, vLLM's template switch or OpenAI's effort, in this order."""
    kind = (body.thinking or {}).get("type")
    if kind in ("enabled", "disabled"):
        return kind == "enabled"
    switches = _switches(body)
    for name in ("thinking", "enable_thinking"):
        if isinstance(switches.get(name), bool):
            return switches[name]
    return None if body.reasoning_effort is None else body.reasoning_effort != "none"


def _thinking_budget(body: ChatCompletionRequest) -> int | None:
    """Qwen's name, vLLM's, or that of Anthropic's `thinking`."""
    within = (body.thinking or {}).get("budget_tokens")
    given = (body.thinking_budget, body.thinking_token_budget, within)
    return next((budget for budget in map(token_count, given) if budget is not None), None)


def _switches(body: ChatCompletionRequest) -> dict[str, Any]:
    return body.chat_template_kwargs or {}

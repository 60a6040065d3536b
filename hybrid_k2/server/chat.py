"""A conversation on its way to the model: what any API asks of the chat template, and its prompt.

Owns the switch between thinking and not, an answer that goes on from what the client began, and
what gives way when a long dialogue outgrows the context. Knows nothing of HTTP or of answers.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid_k2.errors import ContextLengthError
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.service import Service
from hybrid_k2.text import ChatTemplate

HIDDEN_RESULT = "[This tool's output was removed: the conversation had outgrown the context.]"


@dataclass(frozen=True, slots=True)
class Chat:
    """messages, tools: in OpenAI's form, as ChatTemplate.render takes them.

    thinking: None leaves it to the model; K2.5 and later have the switch, and the demo model has.
    preserve_thinking: keep the reasoning of all earlier turns in the prompt.
    continues: the last message is the beginning of the answer.
    thinking_budget: the most tokens of reasoning; None is as many as the model wants.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    thinking: bool | None = None
    preserve_thinking: bool = False
    continues: bool = False
    thinking_budget: int | None = None

    def template(self, service: Service) -> ChatTemplate:
        """The model's template with this conversation's switches."""
        template = service.engine.template
        if self.thinking is None and not self.preserve_thinking:
            return template
        return template.with_thinking(self.thinking, self.preserve_thinking)

    def begins_thinking(self, service: Service) -> bool:
        """Whether the answer's first text is reasoning."""
        return self.template(service).thinking and not self.continues

    async def prompt(self, service: Service) -> list[int]:
        """The prompt's token ids; raises what the template finds wrong, or ContextLengthError.

        Where the settings say so, the results of earlier tool calls give way to a long dialogue.
        """
        try:
            return await self._fitting(service)
        except ContextLengthError:
            shorter = self._without_old_results()
            if not service.settings.hide_tool_outputs or shorter == self:
                raise
        return await shorter._fitting(service)

    async def _fitting(self, service: Service) -> list[int]:
        context = service.core.context
        token_ids = await self.token_ids(service, context)
        if len(token_ids) >= context:  # an answer has one token at least
            raise ContextLengthError(len(token_ids), context)
        return token_ids

    async def token_ids(self, service: Service, max_tokens: int) -> list[int]:
        """As prompt(), with another limit and nothing left out, however long."""
        if self.continues:
            _check_beginning(self.messages[-1])
        # Off the event loop: a long conversation takes a second to tokenise.
        token_ids = await asyncio.to_thread(
            self.template(service).render,
            self.messages,
            self.tools,
            add_generation_prompt=not self.continues,
            max_tokens=max_tokens,
        )
        # A message's end is one marker; what was begun goes on in its place.
        return token_ids[:-1] if self.continues else token_ids

    def _without_old_results(self) -> "Chat":
        """All tool results hidden but those that answer the last calls, as K2-Thinking's card does.

        Not one by one: each new gap would cost a new reading of all that follows it.
        """
        roles = [message.get("role") for message in self.messages]
        last_call = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
        messages = [
            {**message, "content": HIDDEN_RESULT} if role == "tool" and i < last_call else message
            for i, (role, message) in enumerate(zip(roles, self.messages, strict=True))
        ]
        return replace(self, messages=messages)


def token_count(given: Any) -> int | None:
    """An integer as it is; anything else, which no client means, as nothing."""
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _check_beginning(message: Mapping[str, Any]) -> None:
    if message.get("role") != "assistant" or message.get("tool_calls"):
        raise ApiError(
            400,
            "only a last message that is the assistant's and calls no tool can be continued",
            param="messages",
        )

"""A conversation with an OpenAI-compatible server.

Speeds are the server's own where it gives llama.cpp's `timings`, else what this side sees. Knows
nothing of terminals, of click or of how text is shown.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid_k2.cli.conversation import Answer, Conversation
from hybrid_k2.cli.remote import RemoteServer
from hybrid_k2.engine.stats import EngineStats
from hybrid_k2.text import Delta


@dataclass(slots=True)
class RemoteSession(Conversation):
    """card: the server's of its model.  options: fields of the requests beside the messages."""

    server: RemoteServer
    card: Mapping[str, Any]
    options: Mapping[str, Any]
    _total: EngineStats = field(default_factory=EngineStats)

    @property
    def name(self) -> str:
        return str(self.card["id"])

    @property
    def context(self) -> int | None:
        """vLLM, SGLang and this project's server say it."""
        context = self.card.get("max_model_len")
        return context if isinstance(context, int) else None

    @property
    def default_system(self) -> str:
        return "the server's own"

    @property
    def total(self) -> EngineStats:
        return self._total

    def _begin(self, messages: list[dict[str, str]]) -> tuple[Answer, Generator[Delta]]:
        answer = Answer()
        return answer, self._stream(messages, answer)

    def _stream(self, messages: list[dict[str, str]], answer: Answer) -> Generator[Delta]:
        body = {
            "model": self.name,
            "messages": messages,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        times, last = _Times(), {}
        events = self.server.events("/v1/chat/completions", body)
        try:
            for event in events:
                last = event if event.get("usage") else last
                for choice in event.get("choices", ()):
                    if choice.get("finish_reason"):
                        is_cut = choice["finish_reason"] == "length"
                        answer.finish_reason = "length" if is_cut else "stop"
                    for delta in _deltas(choice.get("delta", {})):
                        times.note()
                        answer.num_tokens += 1  # until the usage says how many they really are
                        yield delta
        finally:
            events.close()
            usage = last.get("usage") or {}
            answer.prompt_tokens = usage.get("prompt_tokens", 0)
            answer.num_tokens = usage.get("completion_tokens", answer.num_tokens)
            answer.stats = times.stats(answer, usage, last.get("timings") or {})
            self._total += answer.stats


def _deltas(delta: Mapping[str, Any]) -> list[Delta]:
    """The texts of a chunk; servers disagree on the name of reasoning, some give it under both."""
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    texts = (("reasoning", reasoning), ("content", delta.get("content")))
    return [Delta(channel, text) for channel, text in texts if text]


class _Times:
    """When an answer was asked for, and when its first and its latest piece came."""

    def __init__(self) -> None:
        self._asked_s = self._first_s = self._latest_s = time.perf_counter()
        self._has_any = False

    def note(self) -> None:
        self._latest_s = time.perf_counter()
        if not self._has_any:
            self._first_s, self._has_any = self._latest_s, True

    def stats(
        self, answer: Answer, usage: Mapping[str, Any], timings: Mapping[str, float]
    ) -> EngineStats:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read_ms = timings.get("prompt_ms", (self._first_s - self._asked_s) * 1e3)
        written_ms = timings.get("predicted_ms", (self._latest_s - self._first_s) * 1e3)
        return EngineStats(
            prefill_tokens=answer.prompt_tokens - cached,
            prefill_s=read_ms / 1e3,
            decode_tokens=max(answer.num_tokens - 1, 0),  # the first comes with the reading
            decode_s=written_ms / 1e3,
            cached_tokens=cached,
        )

"""A conversation with the engine of this process.

Every turn renders the whole conversation and hands the engine all of its ids; the engine knows how
much of that it has computed before. Knows nothing of terminals, of click or of how text is shown.
"""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hybrid_k2.cli.conversation import Answer, Conversation
from hybrid_k2.text import ChatTemplate, Delta, TextStream

if TYPE_CHECKING:
    from hybrid_k2 import Engine, SamplingParams
    from hybrid_k2.engine.stats import EngineStats


@dataclass(slots=True)
class ChatSession(Conversation):
    """engine: hybrid_k2.Engine or what looks like it.  stop: strings that end an answer.

    params: their stop tokens are replaced by the tokenizer's.
    """

    engine: "Engine"
    template: ChatTemplate
    params: "SamplingParams"
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A GGUF may name [EOS] as its only end; K2's chats end with <|im_end|>.
        self.params = replace(self.params, stop_token_ids=self.engine.tokenizer.eos_ids)
        TextStream(self.engine.tokenizer, self.stop)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def context(self) -> int:
        return self.engine.core.context

    @property
    def default_system(self) -> str:
        return self.template.default_system

    @property
    def total(self) -> "EngineStats":
        return self.engine.core.stats

    def _begin(self, messages: list[dict[str, str]]) -> tuple[Answer, Generator[Delta]]:
        ids = self.template.render(messages, max_tokens=self.context)
        answer = Answer(prompt_tokens=len(ids))
        return answer, self._generate(ids, answer)

    def _generate(self, ids: list[int], answer: Answer) -> Generator[Delta]:
        stream = TextStream(self.engine.tokenizer, self.stop, self.template.thinking)
        before = self.engine.core.stats
        try:
            with contextlib.closing(self.engine.generate(ids, self.params)) as tokens:
                for token_id in tokens:
                    answer.num_tokens += 1
                    yield from stream.push(token_id)
                    if stream.stopped is not None:
                        break
            yield from stream.finish()
            room = self.context - len(ids)
            most = min(self.params.max_tokens or room, room)
            is_cut = answer.num_tokens >= most and stream.stopped is None
            answer.finish_reason = "length" if is_cut else "stop"
        finally:
            answer.stats = self.engine.core.stats - before

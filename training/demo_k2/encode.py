"""Dialogues to training samples: K2's template makes the ids, the assistant's parts get the weight.

In an instruct template every answer of a conversation is learnt from one sample. Where the model
thinks, the template drops earlier reasoning, so only what follows the last question is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demo_k2.dialogues import Dialogue
from demo_k2.samples import FULL_WEIGHT
from hybrid_k2.text import ChatTemplate, Tokenizer
from hybrid_k2.text.markers import IM_ASSISTANT, IM_END, IM_MIDDLE

CONTEXT_WEIGHT = 10  # hundredths, of what users, tools and systems say


class Encoder:
    """For one tokenizer; thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._assistant, self._middle, self._end = (
            tokenizer.special_id(name) for name in (IM_ASSISTANT, IM_MIDDLE, IM_END)
        )
        self._templates: dict[tuple[str, bool, bool], ChatTemplate] = {}

    def template(self, variant: str, thinking: bool = True, preserve: bool = False) -> ChatTemplate:
        """The chat template of a variant, made once."""
        key = (variant, thinking, preserve)
        if key not in self._templates:
            self._templates[key] = ChatTemplate(
                self._tokenizer, variant, thinking=thinking, preserve_thinking=preserve
            )
        return self._templates[key]

    def sample(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """ids, and a weight in hundredths for each as a target."""
        template = self.template(dialogue.variant, dialogue.thinking)
        messages, tools = dialogue.messages, dialogue.tools or None
        if dialogue.variant == "instruct":
            ids = template.render(messages, tools, add_generation_prompt=False)
            return ids, list(self._weights(ids, is_answer=False))
        split = last_question(messages) + 1
        keeping = self.template(dialogue.variant, dialogue.thinking, preserve=True)
        whole = keeping.render(messages, tools, add_generation_prompt=False)
        answer = whole[len(keeping.render(messages[:split], tools)) :]
        prompt = template.render(messages[:split], tools)
        # Earlier answers have lost their reasoning, and to answer without is not to be learnt.
        weights = list(self._weights(prompt, is_answer=False, of_answers=0))
        return prompt + answer, weights + list(self._weights(answer, is_answer=True))

    def _weights(
        self, ids: Sequence[int], is_answer: bool, of_answers: int = FULL_WEIGHT
    ) -> Iterator[int]:
        by_assistant = False
        for token_id in ids:
            yield of_answers if is_answer else CONTEXT_WEIGHT
            if token_id == self._assistant:
                by_assistant = True
            elif token_id == self._middle:
                is_answer = by_assistant
            elif token_id == self._end:
                is_answer = by_assistant = False


def last_question(messages: Sequence[dict]) -> int:
    """The index of the last message by a user."""
    return max(i for i, message in enumerate(messages) if message["role"] == "user")

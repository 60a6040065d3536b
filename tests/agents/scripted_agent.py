"""A model that plays a coding agent's part: the calls of a task one after the other, then a word.

What it says next follows from the prompt alone: which tasks stand in it, and how many calls. The
engine, pages and prefix cache around it are the real ones. Knows nothing of any agent's program.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from engine.fake_model import FakeModel

from hybrid_k2.engine import EngineCore
from hybrid_k2.text import ChatTemplate, Tokenizer

B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
b, a, e = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
CONTEXT = 1 << 17


@dataclass(frozen=True, slots=True)
class Task:
    """What a user asks, and the calls (tool's name, arguments as JSON) that do it."""

    request: str
    calls: tuple[tuple[str, str], ...]


class AgentModel(FakeModel):
    """Answers requests that declare the tasks' tools; others (a title, say) with one word."""

    def __init__(self, tokenizer: Tokenizer, tasks: Sequence[Task]) -> None:
        super().__init__(num_pages=4 * CONTEXT // 64)
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._reply = functools.lru_cache(maxsize=8)(self._reply_to)

    def logits_after(self, token_ids: Sequence[int]) -> np.ndarray:
        special = self._tokenizer.special_id
        token_ids = list(token_ids)
        assistant = special("<|im_assistant|>")
        assert assistant in token_ids, "this script answers chats only"
        begin = len(token_ids) - 1 - token_ids[::-1].index(assistant)
        begin = token_ids.index(special("<|im_middle|>"), begin) + 1
        reply = self._reply(tuple(token_ids[:begin]))
        logits = np.zeros(self._tokenizer.vocab_size, np.float32)
        logits[[*reply, special("<|im_end|>")][len(token_ids) - begin]] = 20.0
        return logits

    def _reply_to(self, prompt: tuple[int, ...]) -> list[int]:
        text = self._tokenizer.decode(prompt)
        calls = [call for task in self._tasks if task.request in text for call in task.calls]
        if not all(f'"name":"{name}"' in text for name, _ in calls):
            return self._tokenizer.encode("ok")
        num_made = text.count(b)
        if num_made >= len(calls):
            return self._tokenizer.encode("Done.")
        name, arguments = calls[num_made]
        parts = ["I will.", B, b, f"functions.{name}:{num_made}", a, arguments, e, E]
        return [token_id for part in parts for token_id in self._ids(part)]

    def _ids(self, part: str) -> list[int]:
        token_id = self._tokenizer.special_id(part)
        return self._tokenizer.encode(part) if token_id is None else [token_id]


class AgentEngine:
    """What the server takes from hybrid_k2.Engine."""

    def __init__(self, tokenizer: Tokenizer, tasks: Sequence[Task]) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, "instruct")
        self.core = EngineCore(
            AgentModel(tokenizer, tasks),
            vocab_size=tokenizer.vocab_size,
            eos_token_ids=tokenizer.eos_ids,
            context=CONTEXT,
            prefill_chunk=2048,
            max_sequences=4,
        )

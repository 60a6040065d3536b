"""The real EngineCore, tokenizer and template over a model whose replies are scripted.

Owns the script, a gate that holds the model still, and a record of how requests end. Knows no HTTP.
"""

import itertools
import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from engine.fake_model import FakeModel
from text_factory import small_vocabulary

from hybrid_k2.engine import EngineCore
from hybrid_k2.text import ChatTemplate, Tokenizer

ENDLESS = "endless"
CRASH = "crash"


class ScriptedModel(FakeModel):
    """Gives the next token of the reply a probability near one.

    replies: text of the last message -> reply, parts of which may be control tokens by name, each
    a part of its own. A reply whose last part is ENDLESS goes on until it is aborted.
    """

    def __init__(self, tokenizer: Tokenizer, replies: dict[str, Sequence[str]]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._replies = replies
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def forward(self, spans: Sequence[Any]) -> list[torch.Tensor | None]:
        self.entered.release()
        assert self.gate.wait(30), "a test left the gate shut"
        return super().forward(spans)

    def logits_after(self, token_ids: Sequence[int]) -> np.ndarray:
        logits = np.zeros(self._tokenizer.vocab_size, np.float32)
        logits[self._next(list(token_ids))] = 20.0
        return logits

    def _next(self, token_ids: list[int]) -> int:
        special = self._tokenizer.special_id
        if special("<|im_assistant|>") not in token_ids:  # no chat: nothing is scripted for it
            return ord("a")
        start = _last(token_ids, special("<|im_assistant|>"))
        begun = token_ids[_next_index(token_ids, special("<|im_middle|>"), start) + 1 :]
        first = _last(token_ids[:start], special("<|im_middle|>")) + 1
        said = token_ids[first : _next_index(token_ids, special("<|im_end|>"), first)]
        text = self._tokenizer.decode(said)
        if text == CRASH:
            raise ArithmeticError("/secret/path crashed")
        if text == ENDLESS:
            return ord("a") + len(begun) % 26
        parts = self._replies.get(text, [f"You said: {text}"])
        goes_on = parts[-1] == ENDLESS
        reply = self.ids(parts[:-1] if goes_on else parts)
        thinks = {special("<think>"), special("</think>")}
        if reply[0] not in thinks:  # then the template wrote those before the answer, if any
            begun = list(itertools.dropwhile(thinks.__contains__, begun))
        end = ord("a") if goes_on else special("<|im_end|>")
        # Past its end where it is endless or a grammar has lengthened it.
        return [*reply, end][min(len(begun), len(reply))]

    def ids(self, parts: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            token_id = self._tokenizer.special_id(part)
            ids += self._tokenizer.encode(part) if token_id is None else [token_id]
        return ids


class RecordingCore(EngineCore):
    """Says how each request ended: `ended` yields the finish reasons in order."""

    def __init__(self, model: Any, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.ended: queue.Queue[str] = queue.Queue()

    def _end(self, sequence: Any, finish_reason: str, **output: Any) -> None:
        super()._end(sequence, finish_reason, **output)
        self.ended.put(finish_reason)


class ScriptedEngine:
    """What the server takes from hybrid_k2.Engine."""

    def __init__(
        self,
        replies: dict[str, Sequence[str]] | None = None,
        thinking: bool = False,
        variant: str = "",
        **core: Any,
    ) -> None:
        variant = variant or ("thinking" if thinking else "instruct")
        later = variant == "k2.5"
        self.tokenizer = Tokenizer(small_vocabulary(thinking=thinking or later, media=later))
        self.template = ChatTemplate(self.tokenizer, variant)
        self.model = ScriptedModel(self.tokenizer, replies or {})
        settings = dict(
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=(self.tokenizer.special_id("<|im_end|>"),),
            context=1000,
            prefill_chunk=64,
            max_sequences=2,
        )
        self.core = RecordingCore(self.model, **{**settings, **core})


def _last(token_ids: Sequence[int], wanted: int) -> int:
    return len(token_ids) - 1 - list(reversed(token_ids)).index(wanted)


def _next_index(token_ids: Sequence[int], wanted: int, start: int) -> int:
    return list(token_ids).index(wanted, start)

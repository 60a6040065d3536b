"""A server for soak.py: the real engine over a model whose answers follow from the exact prefix.

Prints its address as `hybrid-k2 serve` does. Knows nothing of who asks.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.fake_model import FakeModel, fake_logits
from text_factory import small_vocabulary

from hybrid_k2.cli import server_process
from hybrid_k2.engine import EngineCore
from hybrid_k2.server.service import Service
from hybrid_k2.server.settings import ServerSettings
from hybrid_k2.text import ChatTemplate, Tokenizer


class LetterModel(FakeModel):
    """fake_logits, as letters of the vocabulary, whose ids are their bytes."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(num_pages=1024)
        self._vocab_size = vocab_size

    def logits_after(self, token_ids: Sequence[int]) -> np.ndarray:
        logits = np.full(self._vocab_size, -100.0, np.float32)
        chosen = fake_logits(token_ids)
        logits[ord("A") : ord("A") + len(chosen)] = chosen
        self.steps.clear()
        return logits


class ExactEngine:
    """What the server takes from hybrid_k2.Engine."""

    notice = None

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(small_vocabulary())
        self.template = ChatTemplate(self.tokenizer, "instruct")
        self.core = EngineCore(
            LetterModel(self.tokenizer.vocab_size),
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=self.tokenizer.eos_ids,
            context=4096,
            prefill_chunk=64,
            max_sequences=8,
        )

    def __enter__(self) -> "ExactEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.core.close()


if __name__ == "__main__":
    settings = ServerSettings(model_name="soak", max_waiting=1000)
    with server_process.bind("127.0.0.1", 0) as listener:
        server_process.run(Service(settings), listener, lambda progress: ExactEngine())

"""Runs scheduled work through the model: token lists in, rows of logits out.

Owns the translation into the model's Spans. Knows nothing of queues, sampling or when a sequence
ends.
"""

from collections.abc import Sequence as TokenIds
from typing import Any

import numpy as np

from hybrid_k2.backends.kernel_counters import KernelCounters
from hybrid_k2.engine.scheduler import Work
from hybrid_k2.model.span import Span


class Runner:
    """Feeds one model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def new_cache(self) -> Any:
        """An empty cache."""
        return self._model.new_cache()

    def counters(self) -> KernelCounters:
        """What the model's CPU kernels have done since it was loaded."""
        return self._model.counters()

    def run(self, batch: list[Work]) -> list[np.ndarray | None]:
        """Computes the batch and advances its caches; those that decode go first and by themselves.

        A few tokens and many go through other kernels, which round differently: together, the
        length of a prompt that is read would decide how an answer beside it is rounded. Returns for
        each work float32 [vocab] logits after its last token, None where the prompt goes on.
        """
        results: dict[Work, np.ndarray | None] = {}
        for is_one_token in (True, False):
            part = [work for work in batch if (work.num_tokens == 1) is is_one_token]
            for work, rows in zip(part, self._forward(part), strict=True):
                results[work] = None if rows is None else rows[-1].numpy()
        return [results[work] for work in batch]

    def _forward(self, batch: list[Work]) -> list[Any]:
        if not batch:
            return []
        spans = []
        for work in batch:
            sequence, start = work.sequence, work.sequence.cache.length
            token_ids = sequence.token_ids[start : start + work.num_tokens]
            spans.append(Span(sequence.cache, token_ids, "last" if work.needs_logits else "none"))
        return self._model.forward(spans)

    def logits(self, token_ids: TokenIds[int], cache: Any, chunk_tokens: int) -> np.ndarray:
        """Logits after every token of a given text: float32 [len(token_ids), vocab].

        cache: empty, with room for all of them.
        """
        chunks = []
        for start in range(0, len(token_ids), chunk_tokens):
            span = Span(cache, token_ids[start : start + chunk_tokens], "all")
            chunks.append(self._model.forward([span])[0].numpy())
        return np.concatenate(chunks)

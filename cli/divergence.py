"""How far one way of running a model strays from another on the same text, and how fast each is.

Wraps an engine, so that a measurement which asks for logits also leaves its predictions behind or
compares them. Owns the Kullback-Leibler divergence; the windows are perplexity's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of the predictions counted: KL(first || second) in nats, its mean and the value that 99% stay
    below; how often both have the same first token.
    """

    kl_mean: float
    kl_99: float
    same_top: float


class Recorded:
    """An engine whose predictions are kept, float32 [n, vocab] of log-probabilities a window."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._seconds, self._num_tokens = 0.0, 0
        self.predictions: list[np.ndarray] = []

    @property
    def tokens_s(self) -> float:
        """Tokens read a second."""
        return self._num_tokens / self._seconds

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The engine's."""
        started = time.perf_counter()
        logits = self._engine.logits(token_ids)
        self._seconds += time.perf_counter() - started
        self._num_tokens += len(token_ids)
        counted = logits[len(token_ids) // 2 : -1]  # as perplexity counts them
        self.take(np.stack([log_softmax(row) for row in counted]).astype(np.float32))
        return logits

    def take(self, predictions: np.ndarray) -> None:
        """Keeps a window's."""
        self.predictions.append(predictions)


class Compared(Recorded):
    """An engine whose predictions are compared with those of the first, window by window."""

    def __init__(self, engine: Any, first: Recorded) -> None:
        super().__init__(engine)
        self._expected = iter(first.predictions)
        self._kl: list[np.ndarray] = []
        self._same: list[np.ndarray] = []

    def take(self, predictions: np.ndarray) -> None:
        expected = next(self._expected)
        pairs = zip(expected.astype(np.float64), predictions.astype(np.float64), strict=True)
        self._kl.append(np.array([np.exp(p) @ (p - q) for p, q in pairs]))
        self._same.append(expected.argmax(-1) == predictions.argmax(-1))

    @property
    def divergence(self) -> Divergence:
        """Over all windows so far."""
        kl, same = np.concatenate(self._kl), np.concatenate(self._same)
        return Divergence(float(kl.mean()), float(np.quantile(kl, 0.99)), float(same.mean()))


def log_softmax(row: np.ndarray) -> np.ndarray:
    """float64 of a row of logits."""
    row = row.astype(np.float64) - row.max()
    return row - np.log(np.exp(row).sum())

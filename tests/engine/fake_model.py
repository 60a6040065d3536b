"""A model of integers, whose logits follow from the exact prefix: any mix-up of caches shows.

Owns a stand-in for KimiK2 and its cache, and a record of what was computed. Knows nothing of the
engine.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

VOCAB_SIZE = 50
EOS = 7


def fake_logits(token_ids: Sequence[int]) -> np.ndarray:
    """float32 [VOCAB_SIZE] of small integers over 4, a function of the whole prefix."""
    seed = zlib.crc32(np.asarray(token_ids, dtype=np.int64).tobytes())
    return np.random.default_rng(seed).integers(0, 32, VOCAB_SIZE).astype(np.float32) / 4


class FakeCache:
    """Keeps the tokens themselves where a real cache keeps what was computed of them."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.token_ids = list(token_ids)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def num_bytes(self) -> int:
        return 8 * len(self.token_ids)

    def truncate(self, num_tokens: int) -> None:
        del self.token_ids[num_tokens:]

    def release(self) -> None:
        self.truncate(0)

    def copy(self, num_tokens: int) -> "FakeCache":
        return FakeCache(self.token_ids[:num_tokens])


class FakeModel:
    """forward() as KimiK2's; a prefix with `poison` raises, one with `nan` gives NaN."""

    def __init__(self, poison: int | None = None, nan: int | None = None) -> None:
        self.poison, self.nan = poison, nan
        self.steps: list[list[int]] = []  # tokens computed of each span, by step

    def new_cache(self) -> FakeCache:
        return FakeCache()

    def forward(self, spans: Sequence[Any]) -> list[torch.Tensor | None]:
        self.steps.append([len(span.token_ids) for span in spans])
        results = []
        for span in spans:
            rows = []
            for token_id in span.token_ids:
                span.cache.token_ids.append(token_id)
                rows.append(fake_logits(span.cache.token_ids))
                if self.nan in span.cache.token_ids:
                    rows[-1][3] = np.nan
            if self.poison in span.cache.token_ids:
                raise ArithmeticError(f"token {self.poison}")
            wanted = {"none": [], "last": rows[-1:], "all": rows}[span.logits]
            results.append(torch.from_numpy(np.stack(wanted)) if wanted else None)
        return results


def greedy_tokens(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What an engine must answer greedily, from fake_logits alone."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        best = int(fake_logits(token_ids).argmax())
        if best == EOS:
            break
        token_ids.append(best)
    return token_ids[len(prompt) :]

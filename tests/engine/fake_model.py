"""A model of integers, whose logits follow from the exact prefix: any mix-up of caches shows.

Owns a stand-in for KimiK2, whose real pages hold the tokens themselves, and a record of what was
computed. Knows nothing of the engine.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hybrid_k2.backends.kernel_counters import KernelCounters
from hybrid_k2.model.kv_cache import LatentCache, PagePool
from hybrid_k2.model.pages import PAGE_TOKENS, pages_of

VOCAB_SIZE = 50
EOS = 7


def fake_logits(token_ids: Sequence[int]) -> np.ndarray:
    """float32 [VOCAB_SIZE] of small integers over 4, a function of the whole prefix."""
    seed = zlib.crc32(np.asarray(token_ids, dtype=np.int64).tobytes())
    return np.random.default_rng(seed).integers(0, 32, VOCAB_SIZE).astype(np.float32) / 4


class FakeModel:
    """forward() as KimiK2's; a prefix with `poison` raises, one with `nan` gives NaN.

    What it knows of a prefix it reads back from the cache's pages, in two layers that must agree.
    """

    def __init__(
        self, poison: int | None = None, nan: int | None = None, num_pages: int = 64
    ) -> None:
        self.poison, self.nan = poison, nan
        placements = [(torch.device("cpu"), torch.float32), (torch.device("cpu"), torch.float64)]
        self.pool = PagePool(placements, latent_dim=1, num_pages=num_pages)
        self.kernels_did = KernelCounters()  # for a test to set
        self.steps: list[list[int]] = []  # tokens computed of each span, by step

    def new_cache(self) -> LatentCache:
        return self.pool.new_cache()

    def counters(self) -> KernelCounters:
        return self.kernels_did

    def forward(self, spans: Sequence[Any]) -> list[torch.Tensor | None]:
        for span in spans:
            span.cache.reserve(span.cache.length + span.num_tokens)
        self.steps.append([span.num_tokens for span in spans])
        results = [self._compute(span) for span in spans]
        for span in spans:
            span.cache.length += span.num_tokens
        return results

    def logits_after(self, token_ids: Sequence[int]) -> np.ndarray:
        """float32 [vocab] after the last of token_ids."""
        return fake_logits(token_ids)

    def _compute(self, span: Any) -> torch.Tensor | None:
        start, layers = span.cache.length, []
        written = span.cache.page_ids[start // PAGE_TOKENS : pages_of(start + span.num_tokens)]
        assert not any(map(self.pool.is_shared, written)), "a shared page is written to"
        for layer_idx in range(len(self.pool.pages)):
            span.cache.write(layer_idx, start, torch.tensor(span.token_ids).float()[:, None])
            seen = span.cache.read(layer_idx, start + span.num_tokens)
            layers.append([int(token_id) for rows in seen for token_id in rows[:, 0].tolist()])
        assert layers[0] == layers[1], "the layers' pages differ"
        token_ids = layers[0]
        if self.poison in token_ids:
            raise ArithmeticError(f"token {self.poison}")
        if span.num_logits == 0:
            return None
        rows = []
        for end in range(len(token_ids) - span.num_logits + 1, len(token_ids) + 1):
            rows.append(self.logits_after(token_ids[:end]))
            if self.nan in token_ids[:end]:
                rows[-1][3] = np.nan
        return torch.from_numpy(np.stack(rows))


def greedy_tokens(prompt: Sequence[int], num_tokens: int, ignore_eos: bool = False) -> list[int]:
    """What an engine must answer greedily, from fake_logits alone."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        best = int(fake_logits(token_ids).argmax())
        if best == EOS and not ignore_eos:
            break
        token_ids.append(best)
    return token_ids[len(prompt) :]

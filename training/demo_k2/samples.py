"""Tokenised dialogues on one device, in batches of rows of equal length.

Owns the file of samples (one flat array of ids, one of loss weights, where each begins) and how
rows are filled: one dialogue a row, from position 0 as the runtime reads it; what lies behind it in
its row is whatever follows in the file, with no weight. Knows nothing of text or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LENGTHS = (128, 256, 512, 1024)
MAX_TOKENS = LENGTHS[-1] + 1
FULL_WEIGHT = 100  # of 1.0, as stored


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and targets [rows, length] int64; target_weights the same, float32."""

    ids: Tensor
    targets: Tensor
    target_weights: Tensor


class Samples:
    """ids: uint16 [n]; weights: uint8 [n], hundredths; starts: int64 [samples + 1]."""

    def __init__(self, ids: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> None:
        self.ids, self.weights, self.starts = ids, weights, starts

    @classmethod
    def of(cls, samples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Samples:
        """From (ids, weights in hundredths) pairs; those longer than a row are left out."""
        kept = [(ids, weights) for ids, weights in samples if 1 < len(ids) <= MAX_TOKENS]
        starts = np.cumsum([0, *(len(ids) for ids, _ in kept)])
        ids = np.concatenate([np.asarray(ids, np.uint16) for ids, _ in kept])
        weights = np.concatenate([np.asarray(w, np.uint8) for _, w in kept])
        return cls(ids, weights, starts)

    @classmethod
    def concatenated(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of several, one after another."""
        starts = [np.zeros(1, np.int64)]
        for part in parts:
            starts.append(part.starts[1:] + starts[-1][-1])
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate(starts),
        )

    @classmethod
    def load(cls, *files: Path) -> Samples:
        """What `save` wrote to several files."""
        parts = [np.load(file) for file in files]
        return cls.concatenated([cls(p["ids"], p["weights"], p["starts"]) for p in parts])

    def save(self, file: Path) -> None:
        np.savez(file, ids=self.ids, weights=self.weights, starts=self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])


class Batches:
    """Batches of one set of samples; each holds about `tokens_per_batch` tokens."""

    def __init__(self, samples: Samples, tokens_per_batch: int, device: str) -> None:
        self._tokens_per_batch = tokens_per_batch
        # A row may reach beyond the last sample.
        padding = MAX_TOKENS
        self._ids = torch.from_numpy(np.pad(samples.ids, (0, padding)).astype(np.int32)).to(device)
        self._weights = torch.from_numpy(np.pad(samples.weights, (0, padding))).to(device)
        self._starts = torch.from_numpy(samples.starts[:-1]).to(device)
        lengths = np.diff(samples.starts)
        self._lengths = torch.from_numpy(lengths).to(device)
        bucket = np.searchsorted(LENGTHS, lengths - 1)
        self._members = {
            length: np.flatnonzero(bucket == index) for index, length in enumerate(LENGTHS)
        }

    def epoch(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        """Every sample once, but for less than a batch a length; in file order without `rng`,
        and then the remainders too.
        """
        plan = []
        for length, members in self._members.items():
            rows = max(1, self._tokens_per_batch // length)
            order = members if rng is None else rng.permutation(members)
            stop = len(order) if rng is None or len(order) < rows else len(order) - rows + 1
            plan += [(length, order[first : first + rows]) for first in range(0, stop, rows)]
        if rng is not None:
            rng.shuffle(plan)
        # In one piece, for copying a small array to the device waits for all that it is doing.
        order = [chosen for _, chosen in plan]
        on_device = torch.from_numpy(np.concatenate(order)).to(self._starts.device)
        for (length, _), which in zip(plan, on_device.split([*map(len, order)]), strict=True):
            yield self.rows(which, length)

    def rows(self, which: Tensor, length: int) -> Batch:
        """The batch of these samples (int64, on the device), in rows of `length`."""
        device = self._starts.device
        places = torch.arange(length + 1, device=device)
        index = self._starts[which, None] + places
        ids = self._ids[index].long()
        weights = self._weights[index] * (places < self._lengths[which, None])
        return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:].float() / FULL_WEIGHT)

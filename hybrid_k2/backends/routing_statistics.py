"""How often each expert was chosen, layer by layer, kept in a file from one start to the next.

The counts decide which experts stay in VRAM; a model that starts with those of yesterday need not
learn them again. Owns the counts and their file. The file is a hint that anybody may have written:
what is wrong with it is logged, and counting starts anew. Knows nothing of experts' bytes.
"""

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

SHARED_KEY = "routing_statistics"  # in BackendContext.shared, where somebody keeps them
_FORMAT = 1
_KEPT = 0.5  # of the counts, when a new prompt's are added
_LARGEST_BYTES = 16 << 20
_LARGEST_COUNT = 1e9


class RoutingStatistics:
    """Tokens of recent prompts by layer and expert; what was long ago counts less."""

    def __init__(self, num_experts: int, path: Path | None = None, identity: str = "") -> None:
        """path: read here and written by `save`; None keeps nothing.  identity: of the model; a
        file of another one is not used.
        """
        self._path, self._identity = path, identity
        self._num_experts = num_experts
        self._counts: dict[int, np.ndarray] = {}
        self._is_changed = False
        if path is not None:
            self._load(path)

    def counts(self, layer: int) -> np.ndarray:
        """[E] float64, tokens by expert; changes with `record`."""
        return self._counts.setdefault(layer, np.zeros(self._num_experts))

    def record(self, layer: int, num_tokens: np.ndarray) -> None:
        """Adds a prompt's tokens by expert, [E]; what was before counts half."""
        counts = self.counts(layer)
        counts *= _KEPT
        counts += num_tokens
        self._is_changed = True

    def save(self) -> None:
        """Writes the file anew if there is anything to keep; a failure is logged."""
        if self._path is None or not self._is_changed:
            return
        content = {
            "format": _FORMAT,
            "identity": self._identity,
            "counts": {layer: row.round(3).tolist() for layer, row in self._counts.items()},
        }
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("x", encoding="ascii") as file:
                json.dump(content, file)
            temporary.replace(self._path)
            self._is_changed = False
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            log.warning("routing statistics are lost: cannot write %s: %s", self._path, error)

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_BYTES + 1)
            content = json.loads(text) if len(text) <= _LARGEST_BYTES else None
            counts = self._checked(content)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            log.warning("routing statistics start anew: cannot read %s: %s", path, error)
            return
        if counts is None:
            log.warning("routing statistics start anew: %s is not of this model", path)
            return
        self._counts = counts

    def _checked(self, content: object) -> dict[int, np.ndarray] | None:
        """The file's counts; None where they are not this model's, or no counts."""
        if not isinstance(content, dict):
            return None
        if (content.get("format"), content.get("identity")) != (_FORMAT, self._identity):
            return None
        rows = content.get("counts")
        if not isinstance(rows, dict) or not all(re.fullmatch(r"\d{1,4}", key) for key in rows):
            return None
        for row in rows.values():
            if not isinstance(row, list) or len(row) != self._num_experts:
                return None
            if not all(type(n) in (int, float) and 0 <= n <= _LARGEST_COUNT for n in row):
                return None
        return {int(key): np.array(row, np.float64) for key, row in rows.items()}

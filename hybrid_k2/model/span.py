"""What one sequence contributes to a step; without torch, so that a bad request is refused fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hybrid_k2.model.kv_cache import LatentCache


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence, from its cache's length on, and which of their logits are
    wanted.
    """

    cache: "LatentCache"
    token_ids: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_logits(self) -> int:
        """Rows of logits wanted; they belong to the last tokens."""
        return {"none": 0, "last": 1, "all": self.num_tokens}[self.logits]

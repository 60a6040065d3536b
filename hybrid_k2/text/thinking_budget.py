"""An answer whose reasoning ends after so many tokens, by force if need be.

A grammar around another one or none: once the budget is used, `</think>` is the only token that may
come. Knows nothing of HTTP, nor of how tokens are drawn.
"""

from typing import Any

import numpy as np

from hybrid_k2.text.markers import THINK_END, TOOL_CALL_BEGIN, TOOL_SECTION_BEGIN
from hybrid_k2.text.tokenizer import Tokenizer

_ENDS = (THINK_END, TOOL_SECTION_BEGIN, TOOL_CALL_BEGIN)  # a call ends reasoning, too


class ThinkingBudget:
    """For answers that begin with reasoning, of a model whose vocabulary has its markers."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, inner: Any = None) -> None:
        """max_tokens: of reasoning, `</think>` not counted.

        inner: the grammar of what else the answer must be, with the methods of the engine's; None
        for anything.
        """
        self.max_tokens = max_tokens
        self.ends = frozenset(map(tokenizer.special_id, _ENDS)) - {None}
        self.only_end = np.zeros(tokenizer.vocab_size, bool)
        self.only_end[tokenizer.special_id(THINK_END)] = True
        self._inner = inner

    def start(self) -> "BudgetConstraint":
        """The constraint of an answer that has no token yet."""
        return BudgetConstraint(self, None if self._inner is None else self._inner.start())


class BudgetConstraint:
    """One answer under its budget."""

    def __init__(self, budget: ThinkingBudget, inner: Any) -> None:
        self._budget = budget
        self._inner = inner
        self._num_left: int | None = budget.max_tokens  # None: the reasoning is over

    @property
    def may_end(self) -> bool:
        return self._num_left != 0 and (self._inner is None or self._inner.may_end)

    @property
    def is_done(self) -> bool:
        return self._inner is not None and self._inner.is_done

    def mask(self) -> np.ndarray | None:
        if self._num_left == 0:
            return self._budget.only_end
        return None if self._inner is None else self._inner.mask()

    def accept(self, token_id: int) -> None:
        if self._inner is not None:
            self._inner.accept(token_id)
        if token_id in self._budget.ends:
            self._num_left = None
        elif self._num_left is not None:
            self._num_left -= 1

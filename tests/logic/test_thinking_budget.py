"""Reasoning under a budget: what may come next, and when the budget has nothing more to say."""

import numpy as np
import pytest
from text_factory import small_vocabulary

from hybrid_k2.text import Tokenizer
from hybrid_k2.text.markers import THINK_END, TOOL_SECTION_BEGIN
from hybrid_k2.text.thinking_budget import ThinkingBudget

A, B = ord("a"), ord("b")


@pytest.fixture
def tokenizer():
    return Tokenizer(small_vocabulary(thinking=True))


class OnlyB:
    """A grammar whose answers are of the letter b and end after two."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.accepted: list[int] = []

    def start(self) -> "OnlyB":
        return self

    def mask(self):
        mask = np.zeros(self.vocab_size, bool)
        mask[B] = True
        return mask

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    @property
    def may_end(self) -> bool:
        return self.accepted.count(B) == 2

    @property
    def is_done(self) -> bool:
        return self.may_end


def allowed(constraint) -> list[int] | None:
    mask = constraint.mask()
    return None if mask is None else np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_after_the_budget_only_the_end_of_thinking_may_come_and_then_anything(tokenizer, budget):
    end = tokenizer.special_id(THINK_END)
    constraint = ThinkingBudget(tokenizer, budget).start()
    for _ in range(budget):
        assert allowed(constraint) is None and constraint.may_end
        constraint.accept(A)
    assert allowed(constraint) == [end] and not constraint.may_end
    constraint.accept(end)
    for _ in range(budget + 2):
        assert allowed(constraint) is None and constraint.may_end and not constraint.is_done
        constraint.accept(A)


@pytest.mark.parametrize("marker", [THINK_END, TOOL_SECTION_BEGIN])
def test_thinking_that_ends_by_itself_is_never_forced(tokenizer, marker):
    constraint = ThinkingBudget(tokenizer, 3).start()
    for token_id in (A, tokenizer.special_id(marker), A, A, A, A):
        constraint.accept(token_id)
    assert allowed(constraint) is None


def test_what_else_the_answer_must_be_holds_before_and_after(tokenizer):
    inner = OnlyB(tokenizer.vocab_size)
    end = tokenizer.special_id(THINK_END)
    constraint = ThinkingBudget(tokenizer, 1, inner).start()
    assert allowed(constraint) == [B]
    constraint.accept(B)
    assert allowed(constraint) == [end]
    constraint.accept(end)
    assert allowed(constraint) == [B] and not constraint.is_done
    constraint.accept(B)
    assert constraint.is_done and constraint.may_end
    assert inner.accepted == [B, end, B]


def test_answers_of_one_request_have_a_budget_each(tokenizer):
    budget = ThinkingBudget(tokenizer, 1)
    first, second = budget.start(), budget.start()
    first.accept(A)
    assert allowed(first) is not None and allowed(second) is None

"""Which experts of a layer a prompt's tokens meet on the CPU and which on the GPU.

Both sides work at once: the CPU reads experts from RAM and computes, the GPU is sent whole experts
over the bus. Experts with many tokens cost the CPU most and the bus no more than others, so they go
first; how many is chosen so that both sides end together, by rates that are measured as the layers
pass. Owns those rates. Knows no tensors: token counts in, expert ids out.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

_HISTORY = 64  # layers that a rate is fitted to
_PRIOR_WEIGHT = 1e-3  # of the first guess, in layers
_BUS_BYTES_S, _RAM_BYTES_S = 40e9, 80e9  # first guesses, until a layer was measured
_CPU_PRODUCTS_S = 4e12
_WORTHWHILE = 0.95  # of the CPU's time alone: the prediction is no better than that


@dataclass(slots=True)
class LinearCost:
    """Seconds that a number of experts with some tokens in all take: fitted to what was measured.

    expert_s, token_s: the first guesses, for each expert and for each token of an expert.
    """

    expert_s: float
    token_s: float
    _seen: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    _fit: np.ndarray = field(default_factory=lambda: np.ones(2))

    def __call__(self, num_experts: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
        """Predicted seconds."""
        expert_s, token_s = self._fit * (self.expert_s, self.token_s)
        return num_experts * expert_s + num_tokens * token_s

    def learn(self, num_experts: int, num_tokens: int, seconds: float) -> None:
        """Takes a measurement into account: least squares of relative errors, pulled towards the
        first guess where measurements are alike and cannot tell the two rates apart.
        """
        if num_experts == 0 or seconds <= 0:
            return
        shares = (num_experts * self.expert_s / seconds, num_tokens * self.token_s / seconds)
        self._seen.append(shares)
        rows = np.array(self._seen)
        ridge = _PRIOR_WEIGHT * np.eye(2)
        solution = np.linalg.solve(rows.T @ rows + ridge, rows.sum(0) + ridge.sum(0))
        self._fit = np.clip(solution, 0.02, 50.0)


class PrefillSplit:
    """Chooses for the layers of one model, whose experts are of one size."""

    def __init__(self, expert_bytes: int, expert_weights: int) -> None:
        token_s = 2 * expert_weights / _CPU_PRODUCTS_S
        self.cpu = LinearCost(expert_bytes / _RAM_BYTES_S, token_s)
        self.gpu = LinearCost(expert_bytes / _BUS_BYTES_S, token_s / 100)

    def choose(
        self,
        num_tokens: np.ndarray,
        *,
        can_stream: np.ndarray,
        cpu_extra_s: float = 0.0,
        at_hand: tuple[int, ...] = (),
    ) -> list[int]:
        """Experts for the GPU, in the order in which they should be sent.

        num_tokens: [E] int, tokens of each expert.  can_stream: [E] bool.  cpu_extra_s: what the
        CPU's side costs besides its experts: tokens there and back.  at_hand: experts that the GPU
        was sent already, which it takes whatever else is chosen.
        """
        first = np.array([e for e in at_hand if num_tokens[e]], dtype=np.int64)
        rest = can_stream & (num_tokens > 0)
        rest[first] = False
        order = np.argsort(-num_tokens, kind="stable")
        order = np.concatenate([first, order[rest[order]]])
        sent = np.arange(len(order) + 1) - len(first)
        gpu_tokens = np.concatenate([[0], num_tokens[order].cumsum()])
        cpu_experts = np.count_nonzero(num_tokens) - np.arange(len(order) + 1)
        cpu_tokens = num_tokens.sum() - gpu_tokens
        cpu_s = self.cpu(cpu_experts, cpu_tokens) + cpu_extra_s * (cpu_tokens > 0)
        both_s = np.maximum(cpu_s, self.gpu(np.maximum(sent, 0), gpu_tokens))
        count = len(first) + int(both_s[len(first) :].argmin())
        if both_s[count] > _WORTHWHILE * both_s[len(first)]:
            count = len(first)
        return order[:count].tolist()

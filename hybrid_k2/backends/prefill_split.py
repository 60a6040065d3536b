"""Which experts of a layer a prompt's tokens meet on the CPU and which on the GPU.

Both sides work at once: the CPU reads experts from RAM and computes, the GPU is sent whole experts
over the bus. Experts with many tokens cost the CPU most and the bus no more than others, so they go
first; how many is chosen so that both sides end together, by costs that are measured as the layers
pass. Owns those costs. Knows no tensors: token counts in, expert ids out.
"""

import numpy as np

_BUS_BYTES_S, _RAM_BYTES_S = 40e9, 80e9  # first guesses, until a layer was measured
_CPU_PRODUCTS_S = 4e12
_TELLING_BYTES = 16 << 20
_WORTHWHILE = 0.95  # of the CPU's time alone: the prediction is no better than that
_GAIN = 0.5  # of a measurement: layers of one prompt differ by 15% (H200 and 16 cores)
_LARGEST_FACTOR = 2.0  # that one may be off by: the first ones compile kernels
_MOST_STEPS = 20  # a million tokens of one expert


class ExpertCosts:
    """Seconds that an expert takes by the number of its tokens, in steps of a factor of two.

    A measurement tells what many experts took together. Each step's cost moves towards it, by half
    and by the step's share of what was expected, so prompts of one length teach nothing false about
    others.
    """

    def __init__(self, expert_s: float, token_s: float = 0.0) -> None:
        """The first guess: the longer of reading an expert and computing its tokens. Without
        token_s the number of tokens does not matter, and there is one step for all.
        """
        middle = 1.5 * 2.0 ** np.arange(_MOST_STEPS)  # [1, 2) -> 1.5, [2, 4) -> 3
        self._seconds = np.maximum(expert_s, token_s * middle) if token_s else np.full(1, expert_s)

    def __call__(self, num_tokens: np.ndarray) -> np.ndarray:
        """Expected seconds of each expert; one without tokens costs none."""
        return np.where(num_tokens > 0, self._seconds[self._step(num_tokens)], 0.0)

    @property
    def least_s(self) -> float:
        """Of an expert with few tokens."""
        return float(self._seconds[0])

    def learn(self, num_tokens: np.ndarray, seconds: float) -> None:
        """Takes into account that experts with so many tokens took `seconds` together."""
        expected = self(num_tokens)
        total = expected.sum()
        if total <= 0 or seconds <= 0:
            return
        shares = np.bincount(self._step(num_tokens), expected / total, len(self._seconds))
        factor = np.clip(seconds / total, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        self._seconds *= factor ** (_GAIN * shares)

    def _step(self, num_tokens: np.ndarray) -> np.ndarray:
        """floor(log2), 0 for none."""
        return np.clip(np.frexp(num_tokens)[1] - 1, 0, len(self._seconds) - 1)


class PrefillSplit:
    """Chooses for the layers of one model, whose experts are of one size."""

    def __init__(self, expert_bytes: int, expert_weights: int) -> None:
        self.cpu = ExpertCosts(expert_bytes / _RAM_BYTES_S, 2 * expert_weights / _CPU_PRODUCTS_S)
        self.gpu = ExpertCosts(expert_bytes / _BUS_BYTES_S)
        self._copy_bytes_s = _BUS_BYTES_S

    def copy_s(self, num_bytes: int) -> float:
        """Expected seconds of copying activations from the GPU, or there."""
        return num_bytes / self._copy_bytes_s

    def copied(self, num_bytes: int, seconds: float) -> None:
        """Takes a measurement of that into account; a short one tells nothing about the bus."""
        if num_bytes > _TELLING_BYTES:
            self._copy_bytes_s = num_bytes / seconds

    def choose(
        self,
        num_tokens: np.ndarray,
        *,
        can_stream: np.ndarray,
        cpu_extra_s: float = 0.0,
        at_hand: tuple[int, ...] = (),
        gpu_busy_s: float = 0.0,
    ) -> list[int]:
        """Experts for the GPU, in the order in which they should be sent.

        num_tokens: [E] int, tokens of each expert.  can_stream: [E] bool.  cpu_extra_s: what the
        CPU's side costs besides its experts: tokens there and back.  at_hand: experts that the GPU
        was sent already, which it takes whatever else is chosen.  gpu_busy_s: until those are
        there.
        """
        first = np.array([e for e in at_hand if num_tokens[e]], dtype=np.int64)
        rest = can_stream & (num_tokens > 0)
        rest[first] = False
        order = np.argsort(-num_tokens, kind="stable")
        order = order[rest[order]]
        cpu_s = self.cpu(num_tokens)
        all_cpu_s = cpu_s.sum() - cpu_s[first].sum()
        left_s = all_cpu_s - np.concatenate([[0], cpu_s[order].cumsum()])
        left_s += cpu_extra_s * (num_tokens.sum() - num_tokens[first].sum() > 0)
        sent_s = gpu_busy_s + np.concatenate([[0], self.gpu(num_tokens[order]).cumsum()])
        both_s = np.maximum(left_s, sent_s)
        count = int(both_s.argmin())
        if both_s[count] > _WORTHWHILE * both_s[0]:
            count = 0
        return [*first.tolist(), *order[:count].tolist()]

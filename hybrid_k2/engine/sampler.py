"""From one row of logits to one token, for one request.

Owns the request's random generator, the counts its penalties need and its constraint, so nothing
that runs beside it can change its tokens. Knows nothing of the model, of sequences or of text.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.errors import RequestError


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before any sampling option.

    top: (token id, logprob) of the likeliest tokens, likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draws the tokens of one request."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Iterable[int] = (),
        end_token_ids: Collection[int] = (),
    ) -> None:
        """end_token_ids: what ends the answer; not drawn where it may not end yet."""
        self._params = params
        self._end_token_ids = end_token_ids
        self._num_drawn = 0
        self._counts: Counter[int] = Counter()
        self._repeated = set(prompt) if params.repetition_penalty != 1 else set()
        seed = None if params.seed is None else params.seed & (2**64 - 1)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._constraint = None if params.grammar is None else params.grammar.start()

    @property
    def is_done(self) -> bool:
        """Whether the constraint lets nothing follow what was drawn."""
        return self._constraint is not None and self._constraint.is_done

    def sample(self, logits: np.ndarray) -> tuple[int, TokenLogprobs | None]:
        """The next token and, where the request asked for them, its logprobs.

        logits: float32 [vocab], finite; not changed.  Raises what the constraint does, and
        RequestError where it leaves no token.
        """
        adjusted = self._adjust(logits)
        allowed = self._allowed(len(logits))
        if allowed is None:
            token_id = self._draw(adjusted)
        else:
            token_id = int(allowed[self._draw(adjusted[allowed])])
        self._take(token_id)
        if self._params.logprobs is None:
            return token_id, None
        return token_id, token_logprobs(logits, token_id, self._params.logprobs)

    def _draw(self, logits: np.ndarray) -> int:
        """An index into the logits."""
        if self._params.temperature == 0:
            return int(logits.argmax())
        indices, weights = distribution(logits, self._params)
        cumulative = np.cumsum(weights)
        drawn = self._generator.random() * cumulative[-1]
        return int(indices[np.searchsorted(cumulative, drawn, side="right")])

    def _take(self, token_id: int) -> None:
        self._num_drawn += 1
        self._counts[token_id] += 1
        if self._params.repetition_penalty != 1:
            self._repeated.add(token_id)
        if self._constraint is not None and token_id not in self._end_token_ids:
            self._constraint.accept(token_id)

    def _allowed(self, vocab_size: int) -> np.ndarray | None:
        """The ids that may be drawn, int64 [n], n >= 1; None for all of them."""
        mask, may_end = None, self._num_drawn >= self._params.min_tokens
        if self._constraint is not None:
            mask = self._constraint.mask()
            may_end = may_end and self._constraint.may_end
        if mask is None and (may_end or not self._end_token_ids):
            return None
        allowed = np.full(vocab_size, mask is None)
        if mask is not None:
            allowed[: len(mask)] = mask
        allowed[list(self._end_token_ids)] = may_end
        token_ids = np.flatnonzero(allowed)
        if len(token_ids) == 0:
            raise RequestError("the answer's grammar allows no token here and no end either")
        return token_ids

    def _adjust(self, logits: np.ndarray) -> np.ndarray:
        """Logits with logit_bias and the penalties of the tokens so far."""
        params = self._params
        is_penalised = bool(params.frequency_penalty or params.presence_penalty) and self._counts
        if not params.logit_bias and not is_penalised and not self._repeated:
            return logits
        logits = logits.copy()
        if self._repeated:
            repeated = np.fromiter(self._repeated, dtype=np.int64)
            of_them = logits[repeated]
            penalty = np.float32(params.repetition_penalty)
            logits[repeated] = np.where(of_them > 0, of_them / penalty, of_them * penalty)
        for token_id, bias in params.logit_bias.items():
            logits[token_id] += bias
        if is_penalised:
            for token_id, count in self._counts.items():
                logits[token_id] -= params.frequency_penalty * count + params.presence_penalty
        return logits


def distribution(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their unnormalised float64 probabilities.

    Temperature first, then top-k, then top-p of what top-k left, then min-p relative to the
    likeliest.
    logits: float32 [vocab]; temperature > 0.  Returns ids int64 [m] and weights float64 [m], m >=
    1.
    """
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    token_ids = np.arange(len(weights))
    if 0 < params.top_k < len(weights):
        token_ids = np.sort(np.argpartition(weights, -params.top_k)[-params.top_k :])
        weights = weights[token_ids]
    if params.top_p < 1:
        # Tokens below this bound weigh less than 1 - top_p together, so none of them is in the
        # nucleus. Sorting all of K2's vocabulary would take 22 ms a token, this takes 0.7.
        total = weights.sum()
        bound = total * (1 - params.top_p) / len(weights)
        likely = np.flatnonzero(weights >= bound)
        order = likely[np.argsort(-weights[likely], kind="stable")]
        count = int(np.searchsorted(np.cumsum(weights[order]), params.top_p * total)) + 1
        token_ids, weights = token_ids[order[:count]], weights[order[:count]]
    if params.min_p > 0:
        kept = weights >= params.min_p * weights.max()
        token_ids, weights = token_ids[kept], weights[kept]
    return token_ids, weights


def token_logprobs(logits: np.ndarray, token_id: int, num_top: int) -> TokenLogprobs:
    """Logprobs of one token and of the `num_top` likeliest. logits: float32 [vocab]."""
    num_top = min(num_top, len(logits))
    logprobs = log_softmax(logits)
    top = np.argpartition(logprobs, -num_top)[-num_top:] if num_top else np.empty(0, np.int64)
    top = top[np.argsort(-logprobs[top], kind="stable")]
    return TokenLogprobs(
        logprob=float(logprobs[token_id]),
        top=tuple((int(top_id), float(logprobs[top_id])) for top_id in top),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities in float64. logits: [..., vocab]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

"""One request inside the engine: its tokens, its cache, how far it is.

Owns the state that changes from step to step. Knows nothing of other requests, of tensors or of
text.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from hybrid_k2.engine.sampler import Sampler, TokenLogprobs
from hybrid_k2.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step has to say about one request.

    token_id: the token generated, None where a step only ended the request. The token that stops an
    answer (end of text, or one of stop_token_ids) is not part of it and never appears here.
    finish_reason: None while the request runs, then "stop", "length", "abort" or "error" (`error`
    says which). An answer's last token comes with it where the answer needs no token to stop it.
    num_cached_tokens: prompt tokens whose computation another request had already done.
    queued_s: how long the request waited before it first started.
    """

    request_id: int
    token_id: int | None = None
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None
    num_cached_tokens: int = 0
    queued_s: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """How far a request is. num_computed_tokens: of prompt and answer, cached ones included."""

    request_id: int
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    num_generated: int


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and answer of one request.

    token_ids: prompt, then every generated token; those beyond `cache.length` are still to be
    computed.
    max_tokens: the most it may generate, the context's end taken into account.
    cache_salt: prefixes are shared only among sequences with the same one.
    cache: None while it waits. was_preempted: it has waited a second time.
    end_token_ids: what ends the answer and is not part of it.
    """

    request_id: int
    token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    end_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    num_prompt_tokens: int = field(init=False)
    sampler: Sampler = field(init=False)
    cache: Any = None
    num_cached_tokens: int = 0
    was_preempted: bool = False
    submitted_s: float = field(default_factory=time.perf_counter)
    queued_s: float = 0.0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.sampler = Sampler(self.params, self.token_ids, self.end_token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens not computed yet: one while decoding, more while the prompt is being read."""
        return len(self.token_ids) - self.cache.length

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def output(self, **changes: Any) -> StepOutput:
        """A StepOutput of this request."""
        return StepOutput(
            self.request_id,
            num_cached_tokens=self.num_cached_tokens,
            queued_s=self.queued_s,
            **changes,
        )

    def progress(self) -> RunningRequest:
        """How far it is."""
        return RunningRequest(
            self.request_id,
            self.num_prompt_tokens,
            self.cache.length,
            self.num_cached_tokens,
            self.num_generated,
        )

"""The engine: requests of token ids in, tokens out, one step at a time.

Owns the life of a request, from its checks to its finish reason, and ties scheduler, runner,
sampler and prefix cache together. One thread at a time may use it. Knows nothing of text, HTTP or
what the model computes.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as TokenIds
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.engine.runner import Runner
from hybrid_k2.engine.sampling_params import SamplingParams, shown
from hybrid_k2.engine.scheduler import Scheduler, Work
from hybrid_k2.engine.sequence import Sequence, StepOutput
from hybrid_k2.engine.stats import EngineStats
from hybrid_k2.errors import ContextLengthError, NonFiniteError, RequestError
from hybrid_k2.model.pages import OutOfPages

if TYPE_CHECKING:
    from hybrid_k2.checkpoint import Checkpoint
    from hybrid_k2.config import RuntimeConfig
    from hybrid_k2.engine.loader import Progress
    from hybrid_k2.rules import Plan

log = logging.getLogger(__name__)


class EngineCore:
    """Continuous batching over one model.

    model: `new_cache()` and `forward(spans)` as model.kimi_k2.KimiK2 has them.
    eos_token_ids: end an answer unless the request says `ignore_eos`.  context: most tokens of
    prompt and answer.
    prefix_cache_bytes: caches of finished requests kept for reuse.
    find_non_finite: names the first stored tensor that holds NaN or infinity; asked only after the
    model gave one.
    """

    def __init__(
        self,
        model: Any,
        *,
        vocab_size: int,
        eos_token_ids: TokenIds[int],
        context: int,
        prefill_chunk: int,
        max_sequences: int,
        prefix_cache_bytes: int,
        find_non_finite: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.vocab_size = vocab_size
        self.context = context
        self.max_sequences = max_sequences
        self._prefill_chunk = prefill_chunk
        self._eos_token_ids = frozenset(eos_token_ids)
        self._find_non_finite = find_non_finite
        self._runner: Runner | None = Runner(model)
        self._scheduler = Scheduler(max_sequences=max_sequences, prefill_chunk=prefill_chunk)
        self._prefix_cache = PrefixCache(prefix_cache_bytes)
        self._next_id = itertools.count()
        self._live: dict[int, Sequence] = {}
        self._outputs: list[StepOutput] = []  # not handed to anybody yet
        self._inboxes: dict[int, deque[StepOutput]] = {}  # of the requests generate() drives
        self._stats = EngineStats()

    @classmethod
    def open(
        cls,
        checkpoint: "Checkpoint",
        plan: "Plan",
        runtime: "RuntimeConfig",
        progress: "Progress | None" = None,
        *,
        eos_token_ids: TokenIds[int] = (),
    ) -> "EngineCore":
        """Loads the planned model; `checkpoint` must stay open as long as the engine.

        eos_token_ids: the tokenizer's, beside the config's; many GGUF files name only one.
        progress: called as (phase, done_bytes, total_bytes) many times a second of loading; what it
        raises stops it.
        """
        from hybrid_k2.checkpoint.finite import is_finite
        from hybrid_k2.engine.loader import load_model

        config = checkpoint.config
        return cls(
            load_model(checkpoint, plan, runtime, progress),
            vocab_size=config.vocab_size,
            eos_token_ids=(*config.eos_token_ids, *eos_token_ids),
            context=plan.context,
            prefill_chunk=runtime.prefill_chunk,
            max_sequences=runtime.max_sequences,
            prefix_cache_bytes=plan.kv_bytes,
            find_non_finite=lambda: next(
                (name for name, tensor in checkpoint.tensors.items() if not is_finite(tensor)), None
            ),
        )

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the totals since open."""
        return self._stats

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    def submit(self, token_ids: TokenIds[int], params: SamplingParams | None = None) -> int:
        """Queues a request of the whole prefix and returns its id.

        Raises RequestError for an empty prompt, one that leaves no room in the context, or ids
        beyond the vocabulary.
        """
        params = params or SamplingParams()
        token_ids = self._checked_request(token_ids, params)
        room = self.context - len(token_ids)
        request_id = next(self._next_id)
        self._live[request_id] = Sequence(
            request_id,
            token_ids,
            params,
            max_tokens=min(params.max_tokens or room, room),
            end_token_ids=self._ends_of(params),
        )
        self._scheduler.add(self._live[request_id])
        return request_id

    def step(self) -> list[StepOutput]:
        """Runs one step and returns what it produced, but for what generate() is reading.

        One request's failure is that request's output, never an exception.
        """
        self._advance()
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, request_id: int) -> None:
        """Ends a request at once, which the next step reports; one that has ended is ignored."""
        if request_id in self._live:
            self._end(self._live[request_id], "abort")

    def generate(
        self, token_ids: TokenIds[int], params: SamplingParams | None = None
    ) -> Iterator[int]:
        """Yields the answer's tokens without the one that stops it; closing it ends the request.

        Raises RequestError at once, and at the failing token what made the request fail.
        """
        params = params or SamplingParams()
        return self._generate(self._checked_request(token_ids, params), params)

    def logits(self, token_ids: TokenIds[int]) -> np.ndarray:
        """Logits after every token of a given text: float32 [len(token_ids), vocab].

        Raises RequestError as submit does, NonFiniteError where one is NaN or infinite.
        """
        token_ids = self._checked_prompt(token_ids, self.context)
        logits = self._opened().logits(token_ids, self._prefill_chunk)
        self._check_finite(logits)
        return logits

    def close(self) -> None:
        """Ends every request and frees model and caches. Closing twice is allowed."""
        for request_id in list(self._live):
            self.abort(request_id)
        self._prefix_cache.clear()
        self._runner = None

    def _opened(self) -> Runner:
        """The runner; RequestError once the engine is closed."""
        if self._runner is None:
            raise RequestError("the engine is closed; open another one")
        return self._runner

    def _advance(self) -> None:
        self._admit()
        batch = self._scheduler.schedule()
        num_tokens = sum(work.num_tokens for work in batch)
        num_decode = sum(work.sequence.num_generated > 0 for work in batch)
        started_s = time.perf_counter()
        for work, result in zip(batch, self._run(batch), strict=True):
            self._take_result(work, result)
        self._count(num_tokens, num_decode, time.perf_counter() - started_s)

    def _admit(self) -> None:
        for sequence in self._scheduler.admit():
            cache = self._prefix_cache.take(sequence.token_ids)
            sequence.cache = self._opened().new_cache() if cache is None else cache
            sequence.num_cached_tokens = sequence.cache.length
            self._stats += EngineStats(cached_tokens=sequence.num_cached_tokens)

    def _run(self, batch: list[Work]) -> list[np.ndarray | Exception | None]:
        """The runner's results; a batch that fails runs again one by one: only the guilty fails."""
        lengths = [work.sequence.cache.length for work in batch]
        try:
            return [*self._opened().run(batch)] if batch else []
        except Exception as error:
            for work, length in zip(batch, lengths, strict=True):
                work.sequence.cache.truncate(length)
            if isinstance(error, OutOfPages) and self._prefix_cache.drop_oldest():
                return self._run(batch)
            if len(batch) > 1:
                return [result for work in batch for result in self._run([work])]
            return [error]

    def _take_result(self, work: Work, result: np.ndarray | Exception | None) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            if result is not None:
                self._accept(work.sequence, result)
        except Exception as error:
            log.error("request %d failed", work.sequence.request_id, exc_info=error)
            self._end(work.sequence, "error", error=error)

    def _accept(self, sequence: Sequence, logits: np.ndarray) -> None:
        """Samples the next token and ends the sequence where it, its count or its grammar says."""
        self._check_finite(logits)
        token_id, logprobs = sequence.sampler.sample(logits)
        if token_id in sequence.end_token_ids:
            self._end(sequence, "stop")
            return
        sequence.token_ids.append(token_id)
        if sequence.sampler.is_done:
            self._end(sequence, "stop", token_id=token_id, logprobs=logprobs)
        elif sequence.num_generated == sequence.max_tokens:
            self._end(sequence, "length", token_id=token_id, logprobs=logprobs)
        else:
            self._emit(sequence.output(token_id=token_id, logprobs=logprobs))

    def _end(self, sequence: Sequence, finish_reason: str, **output: Any) -> None:
        """Takes a live request out, keeps what it computed for the next one, and reports it."""
        del self._live[sequence.request_id]
        self._scheduler.remove(sequence)
        if sequence.cache is not None and finish_reason == "error":
            sequence.cache.release()
        elif sequence.cache is not None:
            sequence.cache.truncate(sequence.cache.length)
            self._prefix_cache.put(sequence.token_ids[: sequence.cache.length], sequence.cache)
        self._emit(sequence.output(finish_reason=finish_reason, **output))

    def _emit(self, output: StepOutput) -> None:
        self._inboxes.get(output.request_id, self._outputs).append(output)

    def _generate(self, token_ids: list[int], params: SamplingParams) -> Iterator[int]:
        request_id = self.submit(token_ids, params)
        inbox = self._inboxes[request_id] = deque()
        finish_reason = None
        try:
            while finish_reason is None:
                while not inbox:
                    self._advance()
                output = inbox.popleft()
                finish_reason = output.finish_reason
                if output.error is not None:
                    raise output.error
                if output.token_id is not None:
                    yield output.token_id
        finally:
            self.abort(request_id)
            del self._inboxes[request_id]

    def _count(self, num_tokens: int, num_decode: int, elapsed_s: float) -> None:
        if num_tokens == 0:
            return
        decode_share = num_decode / num_tokens
        self._stats += EngineStats(
            prefill_tokens=num_tokens - num_decode,
            prefill_s=elapsed_s * (1 - decode_share),
            decode_tokens=num_decode,
            decode_s=elapsed_s * decode_share,
        )

    def _ends_of(self, params: SamplingParams) -> frozenset[int]:
        ends = frozenset(params.stop_token_ids)
        return ends if params.ignore_eos else ends | self._eos_token_ids

    def _checked_request(self, token_ids: TokenIds[int], params: SamplingParams) -> list[int]:
        for token_id in (*params.logit_bias, *params.stop_token_ids):
            self._check_token_id(token_id)
        return self._checked_prompt(token_ids, self.context - 1)

    def _checked_prompt(self, token_ids: TokenIds[int], most_tokens: int) -> list[int]:
        self._opened()
        if len(token_ids) == 0:
            raise RequestError("the prompt is empty; it needs at least one token")
        if len(token_ids) > most_tokens:
            raise ContextLengthError(len(token_ids), self.context)
        for token_id in token_ids:
            self._check_token_id(token_id)
        return [int(token_id) for token_id in token_ids]

    def _check_token_id(self, token_id: Any) -> None:
        is_integer = isinstance(token_id, int | np.integer) and not isinstance(token_id, bool)
        if not is_integer or not 0 <= token_id < self.vocab_size:
            raise RequestError(
                f"token id {shown(token_id)} is not in the vocabulary; "
                f"ids are integers from 0 to {self.vocab_size - 1}"
            )

    def _check_finite(self, logits: np.ndarray) -> None:
        if np.isfinite(logits).all():
            return
        tensor = self._find_non_finite()
        if tensor:
            raise NonFiniteError(
                f"the model's logits hold NaN or infinity, and so does its tensor {tensor!r}: "
                "the file is damaged; download or convert it again"
            )
        raise NonFiniteError(
            "the model's logits hold NaN or infinity, though every stored tensor is finite"
        )

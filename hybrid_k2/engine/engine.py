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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_k2.engine.disk_cache import prepare_directory
from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.engine.runner import Runner
from hybrid_k2.engine.sampling_params import SamplingParams, shown
from hybrid_k2.engine.scheduler import Scheduler, Work
from hybrid_k2.engine.sequence import RunningRequest, Sequence, StepOutput
from hybrid_k2.engine.stats import CacheStats, EngineStats
from hybrid_k2.errors import ContextLengthError, NonFiniteError, RequestError
from hybrid_k2.model.pages import PAGE_TOKENS, OutOfPages, pages_of

if TYPE_CHECKING:
    from hybrid_k2.backends.kernel_counters import KernelCounters
    from hybrid_k2.backends.routing_statistics import RoutingStatistics
    from hybrid_k2.checkpoint import Checkpoint
    from hybrid_k2.config import RuntimeConfig
    from hybrid_k2.engine.loader import Progress
    from hybrid_k2.rules import Plan

log = logging.getLogger(__name__)


class EngineCore:
    """Continuous batching over one model.

    model: `pool`, `counters()`, `new_cache()`, `forward(spans)` as model.kimi_k2.KimiK2 has them.
    eos_token_ids: end an answer unless the request says `ignore_eos`.  context: most tokens of
    prompt and answer.
    prefix_cache: keeps what requests have computed for others; None keeps it in the pool only.
    routing: what the model's experts count in; written when the engine is closed.
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
        prefix_cache: PrefixCache | None = None,
        routing: "RoutingStatistics | None" = None,
        find_non_finite: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.vocab_size = vocab_size
        self.context = min(context, model.pool.num_pages * PAGE_TOKENS)
        self.max_sequences = max_sequences
        self._prefill_chunk = prefill_chunk
        self._eos_token_ids = frozenset(eos_token_ids)
        self._find_non_finite = find_non_finite
        self._runner: Runner | None = Runner(model)
        self._scheduler = Scheduler(max_sequences=max_sequences, prefill_chunk=prefill_chunk)
        self._prefix_cache = prefix_cache or PrefixCache(model.pool)
        self._routing = routing
        self._next_id = itertools.count()
        self._live: dict[int, Sequence] = {}
        self._outputs: list[StepOutput] = []  # not handed to anybody yet
        self._inboxes: dict[int, deque[StepOutput]] = {}  # of the requests generate() drives
        self._stats = EngineStats()
        self._prompt_tokens = 0  # of every request that has started

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
        from hybrid_k2.engine.loader import (
            load_model,
            open_prefix_cache,
            open_routing_statistics,
        )

        config = checkpoint.config
        if runtime.cache_dir is not None:
            prepare_directory(Path(runtime.cache_dir))
        routing = open_routing_statistics(checkpoint, plan, runtime)
        model = load_model(checkpoint, plan, runtime, progress, routing)
        return cls(
            model,
            vocab_size=config.vocab_size,
            eos_token_ids=(*config.eos_token_ids, *eos_token_ids),
            context=plan.context,
            prefill_chunk=plan.prefill_chunk,
            max_sequences=runtime.max_sequences,
            prefix_cache=open_prefix_cache(checkpoint, plan, runtime, model.pool),
            routing=routing,
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

    @property
    def running(self) -> list[RunningRequest]:
        """How far each request is that does not wait."""
        return [sequence.progress() for sequence in self._scheduler.running]

    def kernel_counters(self) -> "KernelCounters":
        """What the CPU kernels have done since open: weights read, experts computed, time taken."""
        return self._opened().counters()

    def cache_stats(self) -> CacheStats:
        """What the KV cache holds, where, and what that has saved since open."""
        self._opened()
        stats = self._stats
        return CacheStats(
            page_tokens=PAGE_TOKENS,
            page_bytes=self._prefix_cache.page_bytes,
            tiers=self._prefix_cache.stats(),
            prompt_tokens=self._prompt_tokens,
            hit_tokens=stats.cached_tokens,
            preemptions=stats.preemptions,
        )

    def clear_cache(self) -> None:
        """Forgets all prefixes kept, on disk too; requests that run lose nothing."""
        self._opened()
        self._prefix_cache.clear()

    def save_cache(self) -> int:
        """Writes what is kept and not on disk yet, and waits for it; returns the bytes written."""
        self._opened()
        return self._prefix_cache.save()

    def submit(
        self,
        token_ids: TokenIds[int],
        params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
    ) -> int:
        """Queues a request of the whole prefix and returns its id.

        cache_salt: prefixes are shared only among requests with the same one.
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
            cache_salt=cache_salt,
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

        Raises RequestError as submit does and while running requests hold the memory it needs,
        NonFiniteError where one is NaN or infinite.
        """
        token_ids = self._checked_prompt(token_ids, self.context)
        runner = self._opened()
        cache = runner.new_cache()
        try:
            self._prefix_cache.reserve(cache, len(token_ids))
            logits = runner.logits(token_ids, cache, self._prefill_chunk)
        except OutOfPages as error:
            raise RequestError(
                f"{len(token_ids)} tokens need {pages_of(len(token_ids))} pages of KV cache, "
                f"{error.num_missing} more than running requests leave; try again when they ended"
            ) from error
        finally:
            cache.release()
        self._check_finite(logits)
        return logits

    def close(self) -> None:
        """Ends every request and frees model and caches. Closing twice is allowed."""
        if self._runner is None:
            return
        for request_id in list(self._live):
            self.abort(request_id)
        self._prefix_cache.close()
        if self._routing is not None:
            self._routing.save()
        self._runner = None
        del self._prefix_cache

    def _opened(self) -> Runner:
        """The runner; RequestError once the engine is closed."""
        if self._runner is None:
            raise RequestError("the engine is closed; open another one")
        return self._runner

    def _advance(self) -> None:
        if self._runner is None:
            return
        self._prefix_cache.collect()
        self._admit()
        batch = self._with_pages(self._scheduler.schedule(read=not self._fetch()))
        num_tokens = sum(work.num_tokens for work in batch)
        num_decode = sum(work.is_decode for work in batch)
        started_s = time.perf_counter()
        for work, result in zip(batch, self._run(batch), strict=True):
            self._take_result(work, result)
        self._count(num_tokens, num_decode, time.perf_counter() - started_s)

    def _admit(self) -> None:
        """Starts what waits while there are places, and pages for all that their prompts need."""
        while (sequence := self._scheduler.next_waiting) is not None and self._has_room(sequence):
            sequence.cache = self._opened().new_cache()
            self._scheduler.start(sequence)
            self._reuse(sequence, self._prefix_cache.extend)
            if not sequence.was_preempted:
                sequence.queued_s = time.perf_counter() - sequence.submitted_s
                self._prompt_tokens += sequence.num_prompt_tokens

    def _has_room(self, sequence: Sequence) -> bool:
        running = self._scheduler.running
        # What running prompts still need, and one page for each to go on.
        promised = sum(
            max(0, pages_of(len(other.token_ids)) - len(other.cache.page_ids)) + 1
            for other in running
        )
        has_room = self._prefix_cache.has_room
        return not running or has_room(sequence.token_ids, promised, sequence.cache_salt)

    def _fetch(self) -> bool:
        """Gives the prompt whose turn it is what others have computed of it by now; True where that
        was its turn, because it came from RAM or disk.
        """
        sequence = self._scheduler.next_reader
        if sequence is None:
            return False
        self._reuse(sequence, self._prefix_cache.extend)
        return self._reuse(sequence, self._prefix_cache.fetch) > 0 and sequence.num_pending > 1

    def _reuse(self, sequence: Sequence, find: Callable[..., int]) -> int:
        gained = find(sequence.token_ids, sequence.cache, sequence.cache_salt)
        if not sequence.was_preempted:
            sequence.num_cached_tokens += gained
            self._stats += EngineStats(cached_tokens=gained)
        return gained

    def _with_pages(self, batch: list[Work]) -> list[Work]:
        """The work whose pages could be had. The oldest get theirs first, if need be from the
        youngest, which start again later.
        """
        ready = []
        for work in sorted(batch, key=lambda work: work.sequence.request_id):
            sequence = work.sequence
            while sequence.cache is not None:
                num_tokens = sequence.cache.length + work.num_tokens
                try:
                    self._prefix_cache.reserve(sequence.cache, num_tokens)
                    ready.append(work)
                    break
                except OutOfPages:
                    self._make_room(sequence, num_tokens)
        return ready

    def _make_room(self, sequence: Sequence, num_tokens: int) -> None:
        """Preempts the youngest running sequence; one that runs alone shares its pages with nobody
        any more, and then fits, because the context does.
        """
        youngest = max(self._scheduler.running, key=lambda other: other.request_id)
        if youngest is sequence and len(self._scheduler.running) == 1:
            self._prefix_cache.forget()
            sequence.cache.reserve(num_tokens)
            return
        self._prefix_cache.keep(
            youngest.token_ids[: youngest.cache.length], youngest.cache, youngest.cache_salt
        )
        youngest.cache.release()
        youngest.cache = None
        youngest.was_preempted = True
        self._scheduler.preempt(youngest)
        self._stats += EngineStats(preemptions=1)
        log.info("request %d waits: others need its pages", youngest.request_id)

    def _run(self, batch: list[Work]) -> list[np.ndarray | Exception | None]:
        """The runner's results; a batch that fails runs again one by one: only the guilty fails."""
        lengths = [work.sequence.cache.length for work in batch]
        try:
            return [*self._opened().run(batch)] if batch else []
        except Exception as error:
            for work, length in zip(batch, lengths, strict=True):
                work.sequence.cache.truncate(length)
            if len(batch) > 1:
                return [result for work in batch for result in self._run([work])]
            return [error]

    def _take_result(self, work: Work, result: np.ndarray | Exception | None) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            self._keep_whole_pages(work)
            if result is not None:
                self._accept(work.sequence, result)
        except Exception as error:
            log.error("request %d failed", work.sequence.request_id, exc_info=error)
            self._end(work.sequence, "error", error=error)

    def _keep_whole_pages(self, work: Work) -> None:
        """Lets others share the pages that a work has filled."""
        sequence = work.sequence
        num_whole = sequence.cache.length // PAGE_TOKENS
        if num_whole > (sequence.cache.length - work.num_tokens) // PAGE_TOKENS:
            token_ids = sequence.token_ids[: num_whole * PAGE_TOKENS]
            self._prefix_cache.keep(token_ids, sequence.cache, sequence.cache_salt)

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
        if sequence.cache is not None:
            token_ids = sequence.token_ids[: sequence.cache.length]
            if finish_reason == "error":  # what it computed itself may be why
                first_token = sequence.num_cached_tokens
                self._prefix_cache.discard(token_ids, first_token, sequence.cache_salt)
                sequence.cache.release()
            else:
                self._prefix_cache.finish(token_ids, sequence.cache, sequence.cache_salt)
            sequence.cache = None
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

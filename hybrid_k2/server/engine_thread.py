"""The one thread that owns the engine, and the way in and out of it for coroutines.

Commands go in through a queue and run between two steps; tokens come out through a Mailbox into the
Generation of their request. Knows the engine's submit, step and abort, nothing of text or HTTP.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hybrid_k2.engine import EngineCore, RunningRequest, SamplingParams, StepOutput
from hybrid_k2.server.errors import overloaded, unavailable
from hybrid_k2.server.generation import Generation, Mailbox, call_in_loop
from hybrid_k2.server.metrics import Metrics, RequestTimer

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Route:
    """Where one request's outputs go."""

    generation: Generation
    index: int
    timer: RequestTimer
    with_progress: bool


class EngineThread:
    """Starts with start(), ends with close(). submit() is for coroutines of one event loop.

    stream_interval_s: tokens that come closer than this go to the loop together.
    """

    def __init__(
        self,
        core: EngineCore,
        metrics: Metrics,
        *,
        max_waiting: int,
        stream_interval_s: float = 0.0,
    ) -> None:
        self.core = core
        self._metrics = metrics
        self._stream_interval_s = stream_interval_s
        self._mailbox: Mailbox | None = None  # of the event loop, once something was submitted
        self._max_open = core.max_sequences + max_waiting
        self._open: set[tuple[Generation, int]] = set()  # of the event loop
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._routes: dict[int, _Route] = {}  # of the thread, as all below
        self._is_running = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_open(self) -> int:
        """Answers that run or wait."""
        return len(self._open)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends after the step in progress; requests still open get a 503."""
        self._commands.put(self._stop)
        self._thread.join()

    async def submit(
        self,
        token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        timeout_s: float | None = None,
        *,
        with_progress: bool = False,
        cache_salt: str = "",
    ) -> Generation:
        """Starts one answer per element of `choices`; returns once the engine has accepted them.

        with_progress: say how much of the prompt is read, for the first choice.
        cache_salt: prefixes are shared only among requests with the same one.
        Raises RequestError where the engine refuses, ApiError 429 where the queue is full.
        """
        if not self._is_running:
            raise unavailable(SHUTTING_DOWN)
        num_open = len(self._open)
        if num_open + len(choices) > self._max_open:
            self._metrics.rejected("queue_full")
            raise overloaded(f"{num_open} requests are being answered or wait; try again later")
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = Mailbox(loop, self._stream_interval_s)
        generation = Generation(self.abort, len(choices), timeout_s)
        self._open.update((generation, index) for index in range(len(choices)))
        accepted: asyncio.Future[None] = loop.create_future()

        def submit() -> None:
            try:
                self._submit(generation, token_ids, choices, with_progress, cache_salt)
            except Exception as error:
                call_in_loop(loop, _settle, accepted, error)
            else:
                call_in_loop(loop, _settle, accepted, None)

        self._commands.put(submit)
        try:
            await accepted
        except BaseException:
            generation.close()
            raise
        return generation

    async def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns, run between two steps: for what may not change meanwhile."""
        if not self._is_running:
            raise unavailable(SHUTTING_DOWN)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def run() -> None:
            try:
                result, error = function(), None
            except Exception as raised:
                result, error = None, raised
            call_in_loop(loop, _settle, future, error, result)

        self._commands.put(run)
        return await future

    def slots(self) -> list[dict[str, Any]]:
        """The engine's places as llama.cpp shows its slots; for call()."""
        places: list[dict[str, Any]] = [
            {"id": index, "n_ctx": self.core.context, "is_processing": False}
            for index in range(self.core.max_sequences)
        ]
        for place, request in zip(places, self.core.running, strict=False):
            place |= {
                "is_processing": True,
                "id_task": request.request_id,
                "n_prompt_tokens": request.num_prompt_tokens,
                "n_prompt_tokens_cache": request.num_cached_tokens,
                "n_prompt_tokens_processed": min(
                    request.num_computed_tokens, request.num_prompt_tokens
                ),
                "n_decoded": request.num_generated,
            }
        return places

    def abort(self, generation: Generation, index: int) -> None:
        """Ends a choice before the next step. Called in the event loop, as submit is."""
        self._open.discard((generation, index))
        self._commands.put(lambda: self._abort(generation, index))

    def _run(self) -> None:
        while self._is_running:
            self._run_commands()
            if self._routes:
                self._step()
        while not self._commands.empty():  # a submit that came too late gets its answer, too
            self._commands.get_nowait()()
        self._fail_all(unavailable(SHUTTING_DOWN))

    def _run_commands(self) -> None:
        """Runs what came in; waits for something where the engine has nothing to do."""
        while self._is_running:
            try:
                command = self._commands.get(block=not self._routes)
            except queue.Empty:
                return
            command()

    def _step(self) -> None:
        try:
            outputs = self.core.step()
        except Exception as error:
            log.exception("the engine failed; every request in flight ends")
            self._fail_all(error)
            return
        routed = []
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is not None:
                route.timer.output(output)
                routed.append((route, output))
            if output.finish_reason is not None:
                self._routes.pop(output.request_id, None)
        if any(route.with_progress for route in self._routes.values()):
            routed += self._progress()
        self._deliver(routed)

    def _progress(self) -> Iterator[tuple[_Route, RunningRequest]]:
        for request in self.core.running:
            route = self._routes.get(request.request_id)
            if route is not None and route.with_progress and request.num_generated == 0:
                yield route, request

    def _submit(
        self,
        generation: Generation,
        token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        with_progress: bool,
        cache_salt: str,
    ) -> None:
        for index, params in enumerate(choices):
            request_id = self.core.submit(token_ids, params, cache_salt=cache_salt)
            timer = self._metrics.request(len(token_ids))
            is_shown = with_progress and index == 0
            self._routes[request_id] = _Route(generation, index, timer, is_shown)

    def _abort(self, generation: Generation, index: int) -> None:
        for request_id, route in list(self._routes.items()):
            if (route.generation, route.index) == (generation, index):
                del self._routes[request_id]
                self.core.abort(request_id)
                route.timer.output(StepOutput(request_id, finish_reason="abort"))

    def _fail_all(self, error: Exception) -> None:
        for request_id, route in list(self._routes.items()):
            del self._routes[request_id]
            try:
                self.core.abort(request_id)
            except Exception:
                log.exception("request %d could not be aborted", request_id)
            failed = StepOutput(request_id, finish_reason="error", error=error)
            route.timer.output(failed)
            self._deliver([(route, failed)])

    def _deliver(self, routed: Sequence[tuple[_Route, StepOutput | RunningRequest]]) -> None:
        if not routed:
            return
        calls = [(self._arrive, (route.generation, route.index, said)) for route, said in routed]
        self._mailbox.deliver(calls, is_urgent=any(_is_last(said) for _, said in routed))

    def _arrive(
        self, generation: Generation, index: int, output: StepOutput | RunningRequest
    ) -> None:
        """In the event loop. A finished choice frees its place, however slowly it is then read."""
        if _is_last(output):
            self._open.discard((generation, index))
        generation.arrive(index, output)

    def _stop(self) -> None:
        self._is_running = False


def _is_last(output: StepOutput | RunningRequest) -> bool:
    return isinstance(output, StepOutput) and output.finish_reason is not None


def _settle(future: "asyncio.Future[Any]", error: Exception | None, result: Any = None) -> None:
    if future.done():  # its request was cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)

"""The one thread that owns the engine, and the way in and out of it for coroutines.

Commands go in through a queue and run between two steps; each token comes out into the asyncio
queue of its request. Knows the engine's submit, step and abort, nothing of text or HTTP.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hybrid_k2.engine import EngineCore, RunningRequest, SamplingParams, StepOutput
from hybrid_k2.server.errors import overloaded, server_error, to_api_error, unavailable
from hybrid_k2.server.metrics import Metrics, RequestTimer

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"

Result = TypeVar("Result")


class Generation:
    """The answers to one prompt as they are generated: iterate over (choice index, StepOutput).

    Where progress was asked for, a RunningRequest comes in place of an output for each step that
    read more of the prompt. Ends after every choice's last output. Close it, whatever happens: what
    still runs is aborted.
    """

    def __init__(self, thread: "EngineThread", num_choices: int, deadline_s: float | None) -> None:
        self.outputs: asyncio.Queue[tuple[int, StepOutput | RunningRequest]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self._thread = thread
        self._unfinished = set(range(num_choices))
        self._deadline_s = deadline_s

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> tuple[int, StepOutput | RunningRequest]:
        """Raises the error that ended a choice, and a 504 when the request's time is over."""
        index = None
        while index not in self._unfinished:  # what comes after an abort was too late
            if not self._unfinished:
                raise StopAsyncIteration
            try:
                async with asyncio.timeout_at(self._deadline_s):
                    index, output = await self.outputs.get()
            except TimeoutError:
                raise server_error("the request took longer than the server allows", 504) from None
        if isinstance(output, RunningRequest):
            return index, output
        if output.error is not None:
            raise to_api_error(output.error) from output.error  # whoever failed has logged it
        if output.finish_reason is not None:
            self._unfinished.discard(index)
        return index, output

    def abort(self, index: int) -> None:
        """Ends one choice early; it gives no further output."""
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._thread.abort(self, index)

    def cancel(self) -> None:
        """Ends every choice, each with an output that says "abort"."""
        for index in self._unfinished:
            self._thread.abort(self, index)
            self.outputs.put_nowait((index, StepOutput(-1, finish_reason="abort")))

    def close(self) -> None:
        """Aborts what still runs; closing twice is allowed."""
        for index in list(self._unfinished):
            self.abort(index)


@dataclass(frozen=True, slots=True)
class _Route:
    """Where one request's outputs go."""

    generation: Generation
    index: int
    timer: RequestTimer
    with_progress: bool


class EngineThread:
    """Starts with start(), ends with close(). submit() is for coroutines, from any event loop."""

    def __init__(self, core: EngineCore, metrics: Metrics, *, max_waiting: int) -> None:
        self.core = core
        self._metrics = metrics
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
    ) -> Generation:
        """Starts one answer per element of `choices`; returns once the engine has accepted them.

        with_progress: say how much of the prompt is read, for the first choice.
        Raises RequestError where the engine refuses, ApiError 429 where the queue is full.
        """
        if not self._is_running:
            raise unavailable(SHUTTING_DOWN)
        num_open = len(self._open)
        if num_open + len(choices) > self._max_open:
            self._metrics.rejected("queue_full")
            raise overloaded(f"{num_open} requests are being answered or wait; try again later")
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        generation = Generation(self, len(choices), deadline_s)
        self._open.update((generation, index) for index in range(len(choices)))
        accepted: asyncio.Future[None] = loop.create_future()
        self._commands.put(
            lambda: self._submit(generation, token_ids, choices, with_progress, accepted)
        )
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
            _call_in_loop(loop, _settle, future, error, result)

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
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is not None:
                self._deliver(route, output)
            if output.finish_reason is not None:
                self._routes.pop(output.request_id, None)
        if any(route.with_progress for route in self._routes.values()):
            self._report_progress()

    def _report_progress(self) -> None:
        for request in self.core.running:
            route = self._routes.get(request.request_id)
            if route is not None and route.with_progress and request.num_generated == 0:
                arrival = (route.index, request)
                _call_in_loop(route.generation.loop, route.generation.outputs.put_nowait, arrival)

    def _submit(
        self,
        generation: Generation,
        token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        with_progress: bool,
        accepted: "asyncio.Future[None]",
    ) -> None:
        try:
            for index, params in enumerate(choices):
                request_id = self.core.submit(token_ids, params)
                timer = self._metrics.request(len(token_ids))
                is_shown = with_progress and index == 0
                self._routes[request_id] = _Route(generation, index, timer, is_shown)
        except Exception as error:
            _call_in_loop(generation.loop, _settle, accepted, error)
        else:
            _call_in_loop(generation.loop, _settle, accepted, None)

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
            self._deliver(route, failed)

    def _deliver(self, route: _Route, output: StepOutput) -> None:
        route.timer.output(output)
        generation = route.generation
        _call_in_loop(generation.loop, self._arrive, generation, route.index, output)

    def _arrive(self, generation: Generation, index: int, output: StepOutput) -> None:
        """In the event loop. A finished choice frees its place, however slowly it is then read."""
        if output.finish_reason is not None:
            self._open.discard((generation, index))
        generation.outputs.put_nowait((index, output))

    def _stop(self) -> None:
        self._is_running = False


def _call_in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any
) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed: nobody waits for this any more
        log.debug("a request's event loop closed before its answer")


def _settle(future: "asyncio.Future[Any]", error: Exception | None, result: Any = None) -> None:
    if future.done():  # its request was cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)

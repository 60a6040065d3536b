"""How tokens get from the engine's thread into the event loop, and there to who waits for them.

Waking the loop for each token would take the interpreter from the engine for about a millisecond of
every token, so tokens that come fast travel together. Knows nothing of the engine's commands, of
text or of HTTP.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hybrid_k2.engine import RunningRequest, StepOutput
from hybrid_k2.server.errors import server_error, to_api_error

log = logging.getLogger(__name__)

Arrival = tuple[int, StepOutput | RunningRequest]  # which choice, and what the engine says of it


class Generation:
    """The answers to one prompt as they are generated: iterate over lists of (choice, StepOutput).

    Where progress was asked for, a RunningRequest comes in place of an output for each step that
    read more of the prompt. Ends after every choice's last output. Close it, whatever happens: what
    still runs is aborted.
    """

    def __init__(
        self,
        abort: Callable[["Generation", int], None],
        num_choices: int,
        timeout_s: float | None,
    ) -> None:
        """abort: ends a choice in the engine."""
        self._loop = asyncio.get_running_loop()
        self._abort = abort
        self._unfinished = set(range(num_choices))
        self._arrived: deque[Arrival] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._is_late = False
        self._timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._expire)

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[Arrival]:
        """All that came since, at least one. Raises the error that ended a choice, and a 504 when
        the request's time is over.
        """
        while True:
            if self._is_late:
                raise server_error("the request took longer than the server allows", 504)
            if arrivals := self._take():
                return arrivals
            if self._arrived:  # an error
                error = self._arrived[0][1].error
                raise to_api_error(error) from error  # whoever failed has logged it
            if not self._unfinished:
                raise StopAsyncIteration
            self._waiting = self._loop.create_future()
            await self._waiting

    def arrive(self, index: int, output: StepOutput | RunningRequest) -> None:
        """Hands in what the engine says of a choice. In the event loop, as all of this."""
        self._arrived.append((index, output))
        self._wake()

    def abort(self, index: int) -> None:
        """Ends one choice early; it gives no further output."""
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._abort(self, index)

    def cancel(self) -> None:
        """Ends every choice, each with an output that says "abort"."""
        for index in self._unfinished:
            self._abort(self, index)
            self.arrive(index, StepOutput(-1, finish_reason="abort"))

    def close(self) -> None:
        """Aborts what still runs; closing twice is allowed."""
        if self._timer is not None:
            self._timer.cancel()
        for index in list(self._unfinished):
            self.abort(index)

    def _take(self) -> list[Arrival]:
        """What arrived up to the first error, which stays."""
        taken = []
        while self._arrived:
            index, output = self._arrived[0]
            is_output = isinstance(output, StepOutput)
            is_late = index not in self._unfinished  # what comes after an abort
            if is_output and output.error is not None and not is_late:
                break
            self._arrived.popleft()
            if is_late:
                continue
            if is_output and output.finish_reason is not None:
                self._unfinished.discard(index)
            taken.append((index, output))
        return taken

    def _expire(self) -> None:
        self._is_late = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Mailbox:
    """The way from the engine's thread into one event loop.

    A delivery wakes the loop at once unless one has less than `interval_s` ago: then it waits for
    the interval's end, so that fast tokens travel together and slow ones never wait. An urgent one
    never waits either.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_due = False  # the loop will look into the box by itself
        self._timer: asyncio.TimerHandle | None = None

    def deliver(
        self, calls: Iterable[tuple[Callable[..., None], tuple[Any, ...]]], *, is_urgent: bool
    ) -> None:
        """Has the loop call each function with its arguments. Called in any one thread."""
        self._calls.extend(calls)
        if is_urgent or not self._is_due:
            self._is_due = True
            call_in_loop(self._loop, self._open)

    def _open(self) -> None:
        while self._calls:
            function, arguments = self._calls.popleft()
            function(*arguments)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._interval_s, self._look)

    def _look(self) -> None:
        self._is_due = False
        if self._calls:  # also what came just before that line, whose sender saw True
            self._is_due = True
            self._open()


def call_in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any
) -> None:
    """Has another thread's loop call a function soon."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop is closed: nobody waits for this any more
        log.debug("a request's event loop closed before its answer")

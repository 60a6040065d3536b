"""How arrivals cross from the engine's thread into the event loop, and who gets them then."""

import asyncio
import itertools

import pytest

from hybrid_k2.engine import RunningRequest, StepOutput
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.generation import Generation, Mailbox

INTERVAL_S = 0.02
LONG_S = 1e6  # a window that no test lives to see the end of


@pytest.fixture
def anyio_backend():
    return "asyncio"


class FakeLoop:
    """Timers that run when a test says so, and what was asked of another thread."""

    def __init__(self):
        self.soon, self.timers = [], []

    def call_soon_threadsafe(self, function, *arguments):
        self.soon.append((function, arguments))

    def call_later(self, delay_s, function):
        self.timers.append(FakeTimer(function))
        return self.timers[-1]

    def wake(self):
        """Runs what another thread asked for; returns how much that was."""
        calls, self.soon = self.soon, []
        for function, arguments in calls:
            function(*arguments)
        return len(calls)

    def pass_time(self):
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.is_cancelled:
                timer.function()


class FakeTimer:
    def __init__(self, function):
        self.function, self.is_cancelled = function, False

    def cancel(self):
        self.is_cancelled = True


@pytest.fixture
def box():
    loop, got = FakeLoop(), []
    mailbox = Mailbox(loop, INTERVAL_S)

    def deliver(*things, is_urgent=False):
        mailbox.deliver([(got.append, (thing,)) for thing in things], is_urgent=is_urgent)

    return loop, deliver, got


def test_a_delivery_after_silence_wakes_the_loop_at_once(box):
    loop, deliver, got = box
    for number in range(3):
        deliver(number)
        assert loop.wake() == 1
        assert got[-1] == number
        loop.pass_time()


def test_fast_deliveries_share_a_wake_up_in_their_order(box):
    loop, deliver, got = box
    deliver(0)
    loop.wake()
    for number in range(1, 6):
        deliver(number)
    assert loop.wake() == 0
    assert got == [0]
    loop.pass_time()
    assert got == [0, 1, 2, 3, 4, 5]


def test_an_urgent_delivery_takes_what_waits_along_and_begins_a_new_interval(box):
    loop, deliver, got = box
    deliver(0)
    loop.wake()
    deliver(1)
    deliver(2, is_urgent=True)
    assert loop.wake() == 1
    assert got == [0, 1, 2]
    deliver(3)
    assert loop.wake() == 0
    loop.pass_time()
    assert got == [0, 1, 2, 3]
    loop.pass_time()
    deliver(4)
    assert loop.wake() == 1


def test_a_loop_that_is_closed_is_nobodys_trouble():
    loop = asyncio.new_event_loop()
    loop.close()
    Mailbox(loop, INTERVAL_S).deliver([(print, ())], is_urgent=True)


def token(token_id, **more):
    return StepOutput(7, token_id=token_id, **more)


def generation(num_choices=1, timeout_s=LONG_S):
    aborted = []
    return Generation(lambda _, index: aborted.append(index), num_choices, timeout_s), aborted


@pytest.mark.anyio
async def test_all_that_arrived_comes_at_once_and_the_last_output_ends_it():
    answers, aborted = generation(num_choices=2)
    outputs = [(0, token(1)), (1, token(2)), (0, token(3, finish_reason="length"))]
    for index, output in outputs:
        answers.arrive(index, output)
    assert await anext(answers) == outputs
    answers.arrive(1, token(4, finish_reason="stop"))
    assert await anext(answers) == [(1, token(4, finish_reason="stop"))]
    with pytest.raises(StopAsyncIteration):
        await anext(answers)
    answers.close()
    assert aborted == []


@pytest.mark.anyio
async def test_what_came_before_an_error_comes_out_before_it():
    answers, _ = generation()
    answers.arrive(0, token(1))
    answers.arrive(0, StepOutput(7, finish_reason="error", error=ArithmeticError("/secret")))
    assert await anext(answers) == [(0, token(1))]
    with pytest.raises(ApiError) as raised:
        await anext(answers)
    assert raised.value.status == 500 and "/secret" not in str(raised.value)


@pytest.mark.anyio
async def test_an_aborted_choice_says_nothing_more():
    answers, aborted = generation(num_choices=2)
    answers.abort(0)
    answers.arrive(0, token(1))
    answers.arrive(0, StepOutput(7, finish_reason="error", error=ArithmeticError("too late")))
    answers.arrive(1, token(2, finish_reason="stop"))
    assert await anext(answers) == [(1, token(2, finish_reason="stop"))]
    assert aborted == [0]


@pytest.mark.anyio
async def test_a_request_whose_time_is_over_is_a_504_however_much_still_comes():
    answers, aborted = generation(timeout_s=0)
    answers.arrive(0, token(1))
    for _ in range(3):
        await asyncio.sleep(0)
    for number in itertools.count():
        answers.arrive(0, token(number))
        try:
            await anext(answers)
        except ApiError as error:
            assert error.status == 504
            break
        await asyncio.sleep(0)
    answers.close()
    assert aborted == [0]


@pytest.mark.anyio
async def test_progress_is_no_output_and_ends_nothing():
    answers, _ = generation()
    progress = RunningRequest(7, 100, 64, 0, 0)
    waiting = asyncio.ensure_future(anext(answers))
    await asyncio.sleep(0)
    answers.arrive(0, progress)
    assert await waiting == [(0, progress)]

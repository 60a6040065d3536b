"""The thread pool: more threads than cores, competing callers, fork, sleep; the bandwidth probe."""

import os
import threading
import time

import numpy as np
import pytest
import torch

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.blocks import random_stored  # noqa: E402

from hybrid_k2.backends.cpu_kernels import NativeKernels  # noqa: E402
from hybrid_k2.backends.cpu_numba import NumbaKernels  # noqa: E402
from hybrid_k2.backends.kernel_counters import KernelCounters  # noqa: E402
from hybrid_k2.config import RuntimeConfig  # noqa: E402
from hybrid_k2.quant import by_name  # noqa: E402
from hybrid_k2.quant.stored import StoredTensor  # noqa: E402


@pytest.fixture
def problem(rng):
    stored = random_stored("Q8_0", (40, 64), rng)
    return _cpu.Matrix(stored.data, "Q8_0", (40, 64)), rng.standard_normal((3, 64)).astype(
        np.float32
    )


def solve(pool, problem):
    matrix, x = problem
    y = np.empty((len(x), 40), np.float32)
    _cpu.linear(pool, _cpu.Kernels(), matrix, x, y)
    return y


@pytest.mark.parametrize("threads", [1, 2, 3, 2 * (os.cpu_count() or 1) + 1])
def test_any_number_of_threads_computes_the_same(problem, threads):
    expected = solve(_cpu.ThreadPool(1), problem)
    pool = _cpu.ThreadPool(threads)
    for _ in range(50):
        np.testing.assert_array_equal(solve(pool, problem), expected)


def test_callers_on_several_python_threads_take_turns(problem):
    pool, expected, wrong = _cpu.ThreadPool(2), solve(_cpu.ThreadPool(1), problem), []

    def work():
        for _ in range(50):
            if not np.array_equal(solve(pool, problem), expected):
                wrong.append(threading.get_ident())

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_sleeping_workers_wake_up(problem):
    pool, expected = _cpu.ThreadPool(3), solve(_cpu.ThreadPool(1), problem)
    idle = threading.Event()
    for _ in range(5):
        idle.wait(0.005)  # fifty times the workers' patience
        np.testing.assert_array_equal(solve(pool, problem), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_on_its_own(problem):
    pool = _cpu.ThreadPool(2)
    expected = solve(pool, problem)
    child = os.fork()
    if child == 0:
        right = np.array_equal(solve(pool, problem), expected)
        del pool
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(solve(pool, problem), expected)


def test_workers_can_be_pinned(problem):
    cpu = min(os.sched_getaffinity(0))
    pool = _cpu.ThreadPool(2, [cpu, cpu])
    np.testing.assert_array_equal(solve(pool, problem), solve(_cpu.ThreadPool(1), problem))
    assert pool.num_threads == 2


@pytest.fixture(params=[NativeKernels, NumbaKernels])
def kernels(request):
    if request.param is NumbaKernels:
        return NumbaKernels(1)
    return NativeKernels(_cpu, RuntimeConfig(num_threads=2))


def test_counters_grow_by_the_bytes_and_experts_of_each_product(kernels, rng):
    started_s, before = time.perf_counter(), kernels.counters()
    assert before == KernelCounters()
    # Each of another size, of types that numba need not compile.
    types, shapes = ("Q4_1", "Q5_0", "Q5_1"), ((4, 96, 64), (4, 96, 64), (4, 64, 96))
    stored = [random_stored(*kind, rng) for kind in zip(types, shapes, strict=True)]
    gate, up, down = (
        kernels.matrix(StoredTensor("", by_name(s.quant), s.shape, s.data)) for s in stored
    )

    kernels.batched_linear(gate, torch.ones(4, 2, 64))
    after = kernels.counters()
    assert (after.weight_bytes, after.experts, after.skipped) == (stored[0].data.nbytes, 0, 0)

    expert_bytes = sum(s.data.nbytes // 4 for s in stored)
    ids = torch.tensor([[2, -1], [0, 2], [-1, -1]], dtype=torch.int32)
    for num_calls in (1, 2):
        kernels.moe(gate, up, down, torch.ones(3, 64), ids, torch.ones(3, 2))
        read = kernels.counters().weight_bytes - after.weight_bytes
        assert read == num_calls * 2 * expert_bytes  # experts 0 and 2, once for both tokens
    done = kernels.counters()
    assert (done.experts, done.skipped) == (2 * 3, 2 * 3)
    assert 0 < after.busy_s < done.busy_s < time.perf_counter() - started_s


def test_read_bandwidth_is_a_plausible_rate(pool):
    assert 0.1 < _cpu.read_bandwidth(pool, 1 << 24, 3) < 10_000

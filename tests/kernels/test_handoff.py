"""The hand-off between a captured GPU step and the experts of the CPU; a thread plays the GPU."""

import threading
import time

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.blocks import random_stored  # noqa: E402

LAYERS, TOKENS, TOP_K, EXPERTS, HIDDEN, WIDTH = 3, 2, 2, 4, 256, 512


class Step:
    """Mapped memory of a step of some layers, and matrices that differ by layer."""

    def __init__(self, pool, rng):
        self.matrices = [
            tuple(
                _cpu.Matrix(random_stored("Q4_0", shape, rng).data, "Q4_0", shape)
                for shape in [(EXPERTS, WIDTH, HIDDEN)] * 2 + [(EXPERTS, HIDDEN, WIDTH)]
            )
            for _ in range(LAYERS)
        ]
        self.published = np.zeros((LAYERS, _cpu.FLAG_STRIDE), np.uint32)
        self.answered = np.zeros((LAYERS, _cpu.FLAG_STRIDE), np.uint32)
        self.x = np.zeros((TOKENS, HIDDEN), np.float32)
        self.ids = np.zeros((TOKENS, TOP_K), np.int32)
        self.weights = np.zeros((TOKENS, TOP_K), np.float32)
        self.y = np.full((TOKENS, HIDDEN), np.nan, np.float32)
        self.pool, self.kernels = pool, _cpu.Kernels("")
        self.handoff = self.over(self.matrices)

    def over(self, layers):
        """A hand-off of these layers in the same memory."""
        flags = self.published[: len(layers)], self.answered[: len(layers)]
        arrays = self.x, self.ids, self.weights, self.y
        return _cpu.Handoff(self.pool, self.kernels, layers, *flags, *arrays)

    def play_gpu(self, step, inputs):
        """Publishes each layer's inputs and returns the answers, as the captured step does."""
        answers = []
        for layer, (x, ids, weights) in enumerate(inputs):
            self.x[:], self.ids[:], self.weights[:] = x, ids, weights
            self.published[layer, 0] = step
            deadline = time.monotonic() + 10
            while self.answered[layer, 0] != step and time.monotonic() < deadline:
                time.sleep(0)
            answers.append(self.y.copy())
        return answers

    def serve(self, step, timeout_s=10.0, tokens=TOKENS):
        return self.handoff.serve(step, tokens, timeout_s)


@pytest.fixture
def step(pool, rng):
    return Step(pool, rng)


def random_inputs(rng):
    return [
        (
            rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32),
            rng.integers(0, EXPERTS, (TOKENS, TOP_K)).astype(np.int32),
            rng.uniform(0.1, 1, (TOKENS, TOP_K)).astype(np.float32),
        )
        for _ in range(LAYERS)
    ]


def played(step, number, inputs):
    """Starts the thread that plays the GPU; returns it and the list its answers come into."""
    answers = []
    gpu = threading.Thread(target=lambda: answers.extend(step.play_gpu(number, inputs)))
    gpu.start()
    return gpu, answers


def test_every_layer_is_answered_as_the_experts_alone_would(pool, rng, step):
    for number in (1, 2, 2**32 - 1):
        inputs = random_inputs(rng)
        gpu, answers = played(step, number, inputs)
        times = step.serve(number)
        gpu.join()
        assert times.shape == (LAYERS, 2) and (times >= 0).all()
        for matrices, (x, ids, weights), answer in zip(step.matrices, inputs, answers, strict=True):
            expected = np.empty_like(answer)
            _cpu.moe(pool, step.kernels, *matrices, x, ids, weights, expected)
            assert np.array_equal(answer, expected)


def test_a_layer_without_experts_on_the_cpu_is_answered_with_zeros(rng, step):
    inputs = [(x, np.full_like(ids, -1), weights) for x, ids, weights in random_inputs(rng)]
    gpu, answers = played(step, 1, inputs)
    step.serve(1)
    gpu.join()
    assert not np.any(answers)


def test_a_gpu_that_never_comes_is_an_error_and_not_a_hang(step):
    step.published[0, 0] = 5
    step.ids[:] = -1
    with pytest.raises(RuntimeError, match=r"did not publish layer 1 of 3 within 0\.05"):
        step.serve(5, timeout_s=0.05)
    assert (step.answered[:, 0] == 5).all(), "a GPU that comes late must not wait"


def test_an_expert_that_is_none_is_refused_and_the_gpu_is_let_go(step):
    for number, wrong in enumerate((EXPERTS, -2), start=1):
        step.published[:, 0] = number
        step.ids[:] = wrong
        with pytest.raises(RuntimeError, match=f"expert {wrong}, expected -1 or .* below 4"):
            step.serve(number)
        assert (step.answered[:, 0] == number).all()


def test_a_step_that_is_not_served_can_be_released(rng, step):
    gpu, answers = played(step, 9, random_inputs(rng))
    step.handoff.release(9)
    gpu.join(timeout=10)
    assert len(answers) == LAYERS


def test_more_tokens_than_there_is_memory_for_are_refused(step):
    for tokens in (0, TOKENS + 1):
        with pytest.raises(ValueError, match=r"tokens: \d, expected 1\.\.2"):
            step.serve(1, tokens=tokens)


def test_layers_of_different_shapes_are_refused(step):
    gate, up, _ = step.matrices[0]
    with pytest.raises(ValueError, match="different shapes"):
        step.over([(gate, up, gate)])

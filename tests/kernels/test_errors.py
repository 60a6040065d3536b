"""Malformed arguments: a ValueError that names the argument, what it was and what was expected."""

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

DATA = np.zeros(4 * 2 * 34, np.uint8)  # four rows of 64 weights


def matrix(data=DATA, quant="Q8_0", shape=(4, 64)):
    return _cpu.Matrix(data, quant, shape)


def floats(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant": "Q9_9"}, r"quant: no kernel for 'Q9_9', expected one of F32, .*Q6_K"),
        ({"shape": (4,)}, r"shape: \(4,\), expected \(rows, cols\)"),
        ({"shape": (4, 0)}, r"shape: \(4, 0\), expected lengths of at least 1"),
        ({"shape": (-4, 64)}, r"shape: \(-?\*?4?, 64\), expected lengths of at least 1"),
        ({"shape": (4, 65)}, r"shape: \(4, 65\), expected columns in a multiple of 32"),
        ({"shape": (5, 64)}, r"data: shape \(272,\), expected \(340,\)"),
        ({"shape": (1 << 40, 1 << 40)}, r"shape: .*expected a size below 2\^63"),
        ({"data": DATA[:-1]}, r"data: shape \(271,\), expected \(272,\)"),
        ({"data": DATA.reshape(4, 68)}, r"data: shape \(4, 68\), expected \(272,\)"),
        ({"data": DATA.view(np.int8)}, r"data: dtype int8, expected uint8"),
        ({"data": np.zeros(544, np.uint8)[::2]}, r"data: strided, expected a C-contiguous array"),
        ({"data": b"abc"}, r"data: <class 'bytes'>, expected a numpy array"),
    ],
)
def test_a_bad_matrix_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        matrix(**arguments)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (floats(2, 63), floats(2, 4), r"x: shape \(2, 63\), expected \(\*, 64\)"),
        (floats(64), floats(2, 4), r"x: shape \(64,\), expected \(\*, 64\)"),
        (floats(2, 64).astype(np.float64), floats(2, 4), r"x: dtype float64, expected float32"),
        (floats(2, 128)[:, ::2], floats(2, 4), r"x: strided, expected a C-contiguous array"),
        (floats(2, 64), floats(2, 5), r"y: shape \(2, 5\), expected \(2, 4\)"),
        (floats(2, 64), floats(3, 4), r"y: shape \(3, 4\), expected \(2, 4\)"),
        ([[0.0]], floats(2, 4), r"x: <class 'list'>, expected a numpy array"),
    ],
)
def test_linear_refuses_wrong_arrays(pool, x, y, message):
    with pytest.raises(ValueError, match=message):
        _cpu.linear(pool, _cpu.Kernels(), matrix(), x, y)


def test_a_read_only_output_is_refused(pool):
    y = floats(2, 4)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y: read-only, expected a writeable array"):
        _cpu.linear(pool, _cpu.Kernels(), matrix(), floats(2, 64), y)


def test_linear_refuses_a_stack_and_batched_linear_a_wrong_stack(pool):
    stacked = matrix(shape=(2, 2, 64))
    with pytest.raises(ValueError, match="matrix: a stack of 2, expected one matrix"):
        _cpu.linear(pool, _cpu.Kernels(), stacked, floats(1, 64), floats(1, 2))
    with pytest.raises(ValueError, match=r"x: shape \(3, 1, 64\), expected \(2, \*, 64\)"):
        _cpu.batched_linear(pool, _cpu.Kernels(), stacked, floats(3, 1, 64), floats(3, 1, 2))


def moe(pool, **changes):
    arguments = {
        "gate": matrix(np.zeros(2 * 32 * 68, np.uint8), shape=(2, 32, 64)),
        "up": matrix(np.zeros(2 * 32 * 68, np.uint8), shape=(2, 32, 64)),
        "down": matrix(np.zeros(2 * 64 * 34, np.uint8), shape=(2, 64, 32)),
        "x": floats(3, 64),
        "expert_ids": np.zeros((3, 2), np.int32),
        "weights": floats(3, 2),
        "y": floats(3, 64),
    }
    _cpu.moe(pool, _cpu.Kernels(), **(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": matrix(shape=(1, 4, 64))}, r"up: shape \(1, 4, 64\), expected \(2, 32, 64\)"),
        ({"down": matrix(shape=(1, 4, 64))}, r"down: shape \(1, 4, 64\), expected \(2, 64, 32\)"),
        ({"x": floats(3, 32)}, r"x: shape \(3, 32\), expected \(\*, 64\)"),
        (
            {"expert_ids": np.zeros((2, 2), np.int32)},
            r"expert_ids: shape \(2, 2\), expected \(3, \*\)",
        ),
        ({"expert_ids": np.zeros((3, 2), np.int64)}, r"expert_ids: dtype int64, expected int32"),
        (
            {"expert_ids": np.full((3, 2), 2, np.int32)},
            r"expert_ids: 2 at token 0, expected -1 or an expert below 2",
        ),
        ({"expert_ids": np.full((3, 2), -2, np.int32)}, r"expert_ids: -2 at token 0"),
        ({"weights": floats(3, 1)}, r"weights: shape \(3, 1\), expected \(3, 2\)"),
        ({"y": floats(3, 63)}, r"y: shape \(3, 63\), expected \(3, 64\)"),
    ],
)
def test_moe_refuses_wrong_arguments(pool, changes, message):
    moe(pool)
    with pytest.raises(ValueError, match=message):
        moe(pool, **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _cpu.Kernels("sse9"), "tier: unknown name 'sse9', expected one of generic"),
        (lambda: _cpu.ThreadPool(0), "num_threads: 0, expected 1"),
        (lambda: _cpu.ThreadPool(2, [0]), "cpus: 1 entries, expected none or num_threads = 2"),
        (lambda: _cpu.ThreadPool(1, [-1]), "cpus: -1 is not a CPU"),
        (
            lambda: _cpu.dequantise(_cpu.Kernels(), DATA, "Q8_0", 33),
            "n: 33, expected a multiple of 32",
        ),
        (
            lambda: _cpu.dequantise(_cpu.Kernels(), DATA, "Q8_0", 64),
            r"data: shape \(272,\), expected \(68,\)",
        ),
        (lambda: _cpu.read_bandwidth(_cpu.ThreadPool(1), 5, 1), "num_bytes: 5, expected at least"),
        (
            lambda: _cpu.read_bandwidth(_cpu.ThreadPool(1), 1 << 20, 0),
            "repeats: 0, expected at least 1",
        ),
    ],
)
def test_other_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_tier_this_machine_lacks_is_refused():
    everywhere = (*_cpu.tiers(), "amx_emulated")
    missing = [tier for tier in _cpu.all_tiers() if tier not in everywhere]
    if not missing:
        pytest.skip("this machine runs every tier")
    with pytest.raises(ValueError, match=f"tier: this machine cannot run '{missing[0]}'"):
        _cpu.Kernels(missing[0])


def test_a_matrix_keeps_its_bytes_alive(pool):
    weights = matrix(DATA.copy() + 1)
    y = floats(1, 4)
    _cpu.linear(pool, _cpu.Kernels(), weights, floats(1, 64), y)
    assert not y.any()

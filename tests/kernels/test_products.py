"""Every (tier, quant type) pair against float64, on odd shapes; dequantisation against gguf.

A tier that lacks a kernel for a type falls to its parent; the pair is run all the same.
"""

import ctypes
import mmap
import os

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.blocks import (  # noqa: E402
    FLOAT_TYPES,
    block_shape,
    dequantised,
    product,
    product_tolerance,
    random_stored,
)

PAIRS = [(tier, quant) for tier in _cpu.tiers() for quant in _cpu.quant_types()]
pairs = pytest.mark.parametrize(("tier", "quant"), PAIRS)


def column_counts(quant: str) -> list[int]:
    """One block, an odd count, and more than two of every vector unit."""
    size = block_shape(quant)[0]
    return {1: [1, 17, 130, 576], 32: [32, 96, 544], 256: [256, 768]}[size]


def linear(pool, tier: str, stored, x: np.ndarray) -> np.ndarray:
    y = np.full((len(x), stored.shape[0]), np.nan, np.float32)
    matrix = _cpu.Matrix(stored.data, stored.quant, stored.shape)
    _cpu.linear(pool, _cpu.Kernels(tier), matrix, x, y)
    return y


@pairs
def test_linear_agrees_with_float64(pool, rng, tier, quant):
    for cols in column_counts(quant):
        for rows in (1, 3, 33):
            stored = random_stored(quant, (rows, cols), rng)
            for tokens in (1, 2, 5, 17):
                x = rng.standard_normal((tokens, cols)).astype(np.float32)
                error = np.abs(linear(pool, tier, stored, x) - product(stored, x))
                assert np.all(error <= product_tolerance(stored, x)), (
                    rows,
                    cols,
                    tokens,
                    error.max(),
                )


@pairs
def test_an_outlier_of_fifty_sigma_spoils_its_own_block_of_32_only(pool, rng, tier, quant):
    cols, block = 1024, 32
    stored = random_stored(quant, (64, cols), rng)
    x = rng.standard_normal((4, cols)).astype(np.float32)
    x[:, ::211] = 50
    y, exact = linear(pool, tier, stored, x), product(stored, x)
    # Rounding to a step is noise of step / sqrt(12) per activation.
    steps = np.abs(x).reshape(4, -1, block).max(-1) / 127
    noise = np.sqrt(block * (steps**2).sum() / 12) / np.linalg.norm(x)
    assert np.linalg.norm(y - exact) <= 1.5 * noise * np.linalg.norm(exact)


@pairs
def test_a_token_gets_the_same_bits_alone_and_in_a_batch_of_eight(pool, rng, tier, quant):
    cols = 3 * block_shape(quant)[0] * (8 if block_shape(quant)[0] == 1 else 1)
    stored = random_stored(quant, (37, cols), rng)
    x = rng.standard_normal((8, cols)).astype(np.float32)
    together = linear(pool, tier, stored, x)
    single = _cpu.ThreadPool(1)
    for t in range(len(x)):
        np.testing.assert_array_equal(linear(single, tier, stored, x[t : t + 1])[0], together[t])


@pairs
@pytest.mark.parametrize("tokens", [9, 33])
def test_many_tokens_get_the_same_bits_with_any_thread_count(pool, rng, tier, quant, tokens):
    stored = random_stored(quant, (300, 512), rng)
    x = rng.standard_normal((tokens, 512)).astype(np.float32)
    expected = linear(_cpu.ThreadPool(1), tier, stored, x)
    np.testing.assert_array_equal(linear(pool, tier, stored, x), expected)
    assert np.all(np.abs(expected - product(stored, x)) <= product_tolerance(stored, x))


@pairs
def test_weights_may_lie_at_any_address(pool, rng, tier, quant):
    stored = random_stored(quant, (5, 768), rng)
    x = rng.standard_normal((3, 768)).astype(np.float32)
    shifted = np.concatenate([np.zeros(3, np.uint8), stored.data])[3:]
    moved = type(stored)(quant, stored.shape, shifted, stored.weights)
    np.testing.assert_array_equal(linear(pool, tier, moved, x), linear(pool, tier, stored, x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pairs
def test_nothing_is_read_behind_the_last_weight(rng, tier, quant):
    """The weights end where a page without access begins: reading on would kill the child."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    for cols in (*column_counts(quant), 512):
        stored = random_stored(quant, (3, cols), rng)
        size = -(-stored.data.size // page) * page
        memory = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
        guard = ctypes.c_void_p(memory.ctypes.data + size)
        assert libc.mprotect(guard, ctypes.c_size_t(page), 0) == 0
        at_the_end = memory[size - stored.data.size : size]
        at_the_end[:] = stored.data
        moved = type(stored)(quant, stored.shape, at_the_end, stored.weights)
        for tokens in (1, 16):
            x = rng.standard_normal((tokens, cols)).astype(np.float32)
            child = os.fork()
            if child == 0:
                try:
                    linear(_cpu.ThreadPool(1), tier, moved, x)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (cols, tokens)


@pairs
def test_batched_linear_uses_one_matrix_per_entry(pool, rng, tier, quant):
    stack, rows, tokens, cols = 5, 7, 3, 256
    stored = random_stored(quant, (stack, rows, cols), rng)
    x = rng.standard_normal((stack, tokens, cols)).astype(np.float32)
    y = np.full((stack, tokens, rows), np.nan, np.float32)
    _cpu.batched_linear(
        pool, _cpu.Kernels(tier), _cpu.Matrix(stored.data, quant, stored.shape), x, y
    )
    assert np.all(np.abs(y - product(stored, x)) <= product_tolerance(stored, x))


@pairs
def test_dequantise_is_bit_exact_with_gguf(rng, tier, quant):
    stored = random_stored(quant, (9, 512), rng)
    ours = _cpu.dequantise(_cpu.Kernels(tier), stored.data, quant, 9 * 512)
    np.testing.assert_array_equal(
        ours.view(np.uint32), dequantised(quant, stored.data).view(np.uint32)
    )


def test_dequantise_keeps_subnormal_infinite_and_nan_halves():
    halves = np.arange(65536, dtype=np.uint16)
    ours = _cpu.dequantise(_cpu.Kernels("generic"), halves.view(np.uint8), "F16", 65536)
    np.testing.assert_array_equal(ours, halves.view(np.float16).astype(np.float32))


@pairs
def test_a_nan_activation_shows_in_its_own_token_only(pool, rng, tier, quant):
    stored = random_stored(quant, (4, 256), rng)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    x[1, 100] = np.nan
    y = linear(pool, tier, stored, x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pairs
def test_infinite_tiny_and_zero_activations_do_not_crash(pool, rng, tier, quant):
    stored = random_stored(quant, (4, 256), rng)
    x = np.zeros((3, 256), np.float32)
    x[0, 3], x[1] = np.inf, 1e-42
    y = linear(pool, tier, stored, x)
    assert not np.isfinite(y[0]).all()
    np.testing.assert_allclose(y[1:], 0, atol=1e-35)


def test_the_table_names_the_tier_that_serves_each_type():
    for tier in _cpu.tiers():
        table = _cpu.Kernels(tier).table()
        assert list(table) == _cpu.quant_types()
        if tier in ("generic", "avx2", "avx512_vnni"):
            assert set(table.values()) == {tier}
        assert tier == "generic" or "generic" not in table.values()
    assert set(FLOAT_TYPES) <= set(_cpu.quant_types())


def test_tiers_are_those_the_operating_system_reports():
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with CPU flags here")
    expected = ["generic"]
    if {"avx2", "fma", "f16c"} <= set(flags):
        expected.append("avx2")
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"} <= set(flags):
        expected.append("avx512_vnni")
        if {"avx512vbmi", "gfni"} <= set(flags):
            expected.append("avx512_vbmi")
            if {"amx_tile", "amx_bf16"} <= set(flags):
                expected.append("amx")
    assert _cpu.tiers() == expected
    assert _cpu.Kernels().tier == expected[-1]

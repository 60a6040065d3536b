"""Products of bfloat16 tiles, on AMX where the machine has it and on stand-ins everywhere.

Knows from how many tokens on a product goes through tiles, and that float types never do.
"""

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.blocks import product, random_stored  # noqa: E402
from kernels.test_moe import Layer, assert_right, routed  # noqa: E402
from kernels.test_products import linear  # noqa: E402

FIRST = 9  # tokens
QUANTISED = [quant for quant in _cpu.quant_types() if quant not in ("F32", "F16", "BF16")]
PARENTS = {"amx": "avx512_vbmi", "amx_emulated": "generic"}
TIERS = [tier for tier in PARENTS if tier in (*_cpu.tiers(), "amx_emulated")]
tiers = pytest.mark.parametrize("tier", TIERS)
UNEVEN = [1, 5, FIRST - 1, FIRST, 12, 17, 31, 33, 100, 270]  # the last: two runs of panels


def tile_tolerance(stored, x: np.ndarray) -> np.ndarray:
    """Weight and activation each rounded to 8 bits of precision; sums in float32.

    As in product_tolerance, codes offset by up to 128 enlarge the weight's own rounding.
    """
    weights, x = np.abs(stored.weights), np.abs(x.astype(np.float64))
    size = np.repeat(weights.reshape(*weights.shape[:-1], -1, 32).max(-1), 32, -1) + weights
    eps = np.finfo(np.float32).eps
    terms = (2.0**-8 + 2.0**-18) * weights + (16 + x.shape[-1]) * eps * size
    return x @ np.swapaxes(terms, -1, -2) + 1e-30


@tiers
@pytest.mark.parametrize("quant", QUANTISED)
def test_linear_through_tiles_agrees_with_float64(pool, rng, tier, quant):
    # A block of weights is decoded while the one before meets one or two panels, up to six, more.
    for rows, cols, batches in ((37, 768, (FIRST, 16)), (130, 1536, (10, 33)), (66, 1024, (100,))):
        stored = random_stored(quant, (rows, cols), rng)
        for tokens in batches:
            x = rng.standard_normal((tokens, cols)).astype(np.float32)
            y, exact = linear(pool, tier, stored, x), product(stored, x)
            assert np.all(np.abs(y - exact) <= tile_tolerance(stored, x)), (rows, cols, tokens)
            assert np.linalg.norm(y - exact) <= 0.004 * np.linalg.norm(exact)


@tiers
@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "IQ4_NL", "MXFP4"])
def test_rows_of_blocks_of_32_need_not_fill_a_unit(pool, rng, tier, quant):
    for cols in (32, 96, 544, 1120):
        stored = random_stored(quant, (33, cols), rng)
        x = rng.standard_normal((20, cols)).astype(np.float32)
        error = np.abs(linear(pool, tier, stored, x) - product(stored, x))
        assert np.all(error <= tile_tolerance(stored, x)), cols


@tiers
def test_tiles_are_used_from_the_first_token_count_that_pays(pool, rng, tier):
    stored = random_stored("Q4_K", (40, 512), rng)
    x = rng.standard_normal((FIRST, 512)).astype(np.float32)
    few = linear(pool, tier, stored, x[:-1]), linear(pool, PARENTS[tier], stored, x[:-1])
    np.testing.assert_array_equal(*few)
    assert not np.array_equal(linear(pool, tier, stored, x), linear(pool, PARENTS[tier], stored, x))


@tiers
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
def test_float_types_keep_their_precision(pool, rng, tier, quant):
    stored = random_stored(quant, (40, 512), rng)
    x = rng.standard_normal((40, 512)).astype(np.float32)
    y = linear(pool, tier, stored, x)
    np.testing.assert_array_equal(y, linear(pool, PARENTS[tier], stored, x))


@tiers
def test_a_stack_of_matrices_goes_through_tiles(pool, rng, tier):
    stored = random_stored("Q8_0", (5, 45, 96), rng)
    x = rng.standard_normal((5, 19, 96)).astype(np.float32)
    y = np.full((5, 19, 45), np.nan, np.float32)
    matrix = _cpu.Matrix(stored.data, "Q8_0", stored.shape)
    _cpu.batched_linear(pool, _cpu.Kernels(tier), matrix, x, y)
    assert np.all(np.abs(y - product(stored, x)) <= tile_tolerance(stored, x))


def uneven(rng, hidden: int):
    """One expert a token, UNEVEN[e] tokens for expert e and one without, shuffled; some skipped."""
    ids = np.repeat(np.arange(len(UNEVEN)), UNEVEN).astype(np.int32)[:, None]
    ids = np.concatenate([ids, np.full_like(ids[:7], -1)])
    rng.shuffle(ids)
    x = rng.standard_normal((len(ids), hidden)).astype(np.float32)
    return x, ids, rng.uniform(0.1, 1, ids.shape).astype(np.float32)


def run(layer, tier, threads, call, **options):
    matrices = [_cpu.Matrix(s.data, s.quant, s.shape) for s in (layer.gate, layer.up, layer.down)]
    y = np.full(call[0].shape, np.nan, np.float32)
    _cpu.moe(_cpu.ThreadPool(threads), _cpu.Kernels(tier), *matrices, *call, y, **options)
    return y


@tiers
@pytest.mark.parametrize(
    ("quants", "hidden", "width"),
    [
        (("Q4_K", "Q4_K", "Q6_K"), 768, 256),
        (("Q8_0", "IQ2_XXS", "Q4_0"), 256, 160),
        (("Q4_0", "Q8_0", "Q5_0"), 96, 544),
        # Whole blocks: the first of up is decoded during the last of gate.
        (("Q4_0", "Q4_0", "Q8_0"), 512, 512),
    ],
    ids=str,
)
def test_uneven_experts_agree_with_float64(rng, tier, quants, hidden, width):
    layer = Layer(rng, len(UNEVEN) + 1, hidden, width, quants)
    assert_right(layer, tier, *uneven(rng, hidden))


@tiers
def test_results_depend_neither_on_threads_nor_on_the_memory_for_packed_tokens(rng, tier):
    layer = Layer(rng, 8, 256, 256)
    call = routed(rng, 70, 4, 8, 256)
    expected = run(layer, tier, 1, call)
    one_panel = 16 * 2 * (256 + 256)
    for threads, packed_bytes in ((2, 0), (7, 0), (1, 5 * one_panel), (5, 5 * one_panel)):
        y = run(layer, tier, threads, call, packed_bytes=packed_bytes)
        np.testing.assert_array_equal(y, expected)


@tiers
def test_a_nan_token_leaves_the_others_in_its_panel_alone(rng, tier):
    layer = Layer(rng, experts=2)
    call = routed(rng, 40, 2, 2, 256)
    clean = run(layer, tier, 2, call)
    call[0][9, 7] = np.nan
    y = run(layer, tier, 2, call)
    assert np.isnan(y[9]).all()
    np.testing.assert_array_equal(np.delete(y, 9, 0), np.delete(clean, 9, 0))


def test_a_negative_amount_of_memory_is_refused(rng):
    with pytest.raises(ValueError, match="packed_bytes: -1, expected at least 0"):
        run(Layer(rng), "", 1, routed(rng, 2, 2, 6, 256), packed_bytes=-1)


def test_the_stand_ins_are_chosen_by_name_only():
    assert "amx_emulated" not in _cpu.tiers()
    assert _cpu.Kernels("amx_emulated").tier == "amx_emulated"

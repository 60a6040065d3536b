"""The mixture of experts against float64, on every tier: corner cases, mixed types, determinism."""

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.blocks import block_shape, product, product_tolerance, random_stored, silu  # noqa: E402

tiers = pytest.mark.parametrize("tier", _cpu.tiers())
MIXES = [
    ("Q4_K", "Q4_K", "Q6_K"),
    ("Q4_0", "Q4_0", "Q4_0"),
    ("Q8_0", "Q4_K", "BF16"),
    ("F32", "F32", "F32"),
]


class Layer:
    """Random experts and the float64 evaluation of the layer with its error bound."""

    def __init__(self, rng, experts=6, hidden=256, width=256, quants=("Q4_K", "Q4_K", "Q6_K")):
        gate, up, down = quants
        self.hidden = hidden
        self.gate = random_stored(gate, (experts, width, hidden), rng)
        self.up = random_stored(up, (experts, width, hidden), rng)
        self.down = random_stored(down, (experts, hidden, width), rng)

    def run(self, tier, threads, x, ids, weights):
        matrices = [_cpu.Matrix(s.data, s.quant, s.shape) for s in (self.gate, self.up, self.down)]
        y = np.full((len(x), self.hidden), np.nan, np.float32)
        _cpu.moe(_cpu.ThreadPool(threads), _cpu.Kernels(tier), *matrices, x, ids, weights, y)
        return y

    def expected(self, x, ids, weights):
        """(y, tolerance): first-order propagation of each product's own bound."""
        y, bound = np.zeros(x.shape), np.zeros(x.shape)
        for t, k in np.ndindex(ids.shape):
            if ids[t, k] < 0:
                continue
            gate, up, down = (expert(s, ids[t, k]) for s in (self.gate, self.up, self.down))
            row = x[t : t + 1]
            g, u = product(gate, row), product(up, row)
            mid = silu(g) * u
            # |silu'| < 1.1, and the product of both errors is kept too.
            dg, du = 1.1 * product_tolerance(gate, row), product_tolerance(up, row)
            d_mid = dg * np.abs(u) + np.abs(silu(g)) * du + dg * du + 1e-6 * np.abs(mid)
            error = d_mid @ np.abs(down.weights).T + product_tolerance(down, np.abs(mid) + d_mid)
            y[t] += weights[t, k] * product(down, mid)[0]
            bound[t] += abs(weights[t, k]) * error[0]
        return y, bound + 1e-5 * np.abs(y)


def expert(stored, e):
    return type(stored)(stored.quant, stored.shape[1:], stored.data, stored.weights[e])


def routed(rng, tokens, top_k, experts, hidden):
    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    ids = rng.integers(0, experts, (tokens, top_k)).astype(np.int32)
    return x, ids, rng.uniform(0.1, 1, (tokens, top_k)).astype(np.float32)


def assert_right(layer, tier, x, ids, weights):
    expected, tolerance = layer.expected(x, ids, weights)
    for threads in (1, 2, 5):
        error = np.abs(layer.run(tier, threads, x, ids, weights) - expected)
        assert np.all(error <= tolerance), (threads, error.max())
    # The bound is a worst case; the typical error must be far below it, or it hides mistakes.
    if np.linalg.norm(expected):
        assert np.linalg.norm(error) <= 0.03 * np.linalg.norm(expected)


@tiers
@pytest.mark.parametrize("quants", MIXES, ids="-".join)
@pytest.mark.parametrize("tokens", [1, 2, 7, 70])
def test_moe_agrees_with_float64(rng, tier, quants, tokens):
    layer = Layer(rng, quants=quants)
    assert_right(layer, tier, *routed(rng, tokens, 3, 6, 256))


@tiers
@pytest.mark.parametrize("quant", _cpu.quant_types())
def test_moe_works_with_every_type(rng, tier, quant):
    layer = Layer(rng, experts=3, quants=(quant,) * 3)
    assert_right(layer, tier, *routed(rng, 3, 2, 3, 256))


@tiers
@pytest.mark.parametrize(
    ("quant", "hidden", "width"),
    [("Q4_0", 96, 160), ("Q8_0", 32, 32), ("F32", 20, 45), ("BF16", 17, 3)],
)
def test_moe_works_with_odd_sizes(rng, tier, quant, hidden, width):
    assert width % block_shape(quant)[0] == 0
    layer = Layer(rng, hidden=hidden, width=width, quants=(quant,) * 3)
    assert_right(layer, tier, *routed(rng, 5, 2, 6, hidden))


@tiers
def test_skipped_repeated_and_zero_weight_experts(rng, tier):
    layer = Layer(rng)
    x, ids, weights = routed(rng, 6, 4, 6, 256)
    ids[0] = -1
    ids[1] = [2, 2, 2, 5]
    ids[2] = [-1, 3, -1, 3]
    weights[3] = 0
    assert_right(layer, tier, x, ids, weights)
    y = layer.run(tier, 2, x, ids, weights)
    assert not y[[0, 3]].any()


@tiers
@pytest.mark.parametrize("packed_bytes", [0, 1 << 20])  # tokens for tiles in rounds, or at once
def test_experts_are_added_to_what_y_holds(rng, tier, packed_bytes):
    layer = Layer(rng)
    x, ids, weights = routed(rng, 40, 3, 6, 256)
    ids[7] = -1
    before = rng.standard_normal(x.shape).astype(np.float32)
    y = before.copy()
    matrices = [_cpu.Matrix(s.data, s.quant, s.shape) for s in (layer.gate, layer.up, layer.down)]
    call = (_cpu.ThreadPool(2), _cpu.Kernels(tier), *matrices, x, ids, weights)
    _cpu.moe(*call, y, add=True, packed_bytes=packed_bytes)
    np.testing.assert_array_equal(y[7], before[7])
    alone = layer.run(tier, 2, x, ids, weights)
    np.testing.assert_allclose(y, before + alone, atol=1e-5 * np.abs(alone).max())


@tiers
def test_no_token_and_no_expert_per_token_are_allowed(rng, tier):
    layer = Layer(rng)
    x, ids, weights = routed(rng, 4, 2, 6, 256)
    assert layer.run(tier, 2, x[:0], ids[:0], weights[:0]).shape == (0, 256)
    assert not layer.run(tier, 2, x, ids[:, :0].copy(), weights[:, :0].copy()).any()


@tiers
def test_a_dense_mlp_is_one_expert(rng, tier):
    layer = Layer(rng, experts=1, hidden=512, width=768)
    x = rng.standard_normal((9, 512)).astype(np.float32)
    assert_right(layer, tier, x, np.zeros((9, 1), np.int32), np.ones((9, 1), np.float32))


@tiers
@pytest.mark.parametrize("quants", MIXES, ids="-".join)
def test_results_do_not_depend_on_threads_or_on_the_other_tokens(rng, tier, quants):
    layer = Layer(rng, quants=quants)
    for tokens in (8, 50):
        x, ids, weights = routed(rng, tokens, 3, 6, 256)
        together = layer.run(tier, 1, x, ids, weights)
        np.testing.assert_array_equal(layer.run(tier, 2, x, ids, weights), together)
        np.testing.assert_array_equal(layer.run(tier, 7, x, ids, weights), together)
    x, ids, weights = x[:8], ids[:8], weights[:8]
    ids[:] = np.arange(24).reshape(8, 3) % 6  # four tokens an expert: few enough for the same bits
    together = layer.run(tier, 1, x, ids, weights)
    for t in range(len(x)):
        alone = layer.run(tier, 2, x[t : t + 1], ids[t : t + 1], weights[t : t + 1])
        np.testing.assert_array_equal(alone[0], together[t])


@tiers
def test_a_nan_token_leaves_the_others_alone(rng, tier):
    layer = Layer(rng)
    x, ids, weights = routed(rng, 5, 3, 6, 256)
    clean = layer.run(tier, 2, x, ids, weights)
    x[2, 7] = np.nan
    y = layer.run(tier, 2, x, ids, weights)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))

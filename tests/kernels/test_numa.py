"""Workers on several NUMA nodes, which this machine need not have: who computes what first."""

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from kernels.test_moe import Layer, routed  # noqa: E402


@pytest.mark.parametrize("nodes", range(1, 9))
@pytest.mark.parametrize("rows", [1, 31, 32, 96, 2048, 7168, 7170])
def test_the_nodes_rows_are_all_rows_in_order(rows, nodes):
    shares = [_cpu.node_rows(rows, node, nodes) for node in range(nodes)]
    begins, ends = zip(*shares, strict=True)
    assert begins == (0, *ends[:-1])
    assert ends[-1] == rows
    assert all(begin % 32 == 0 and begin <= end for begin, end in shares)
    even = rows / nodes
    assert all(abs(end - begin - even) <= 32 for begin, end in shares)


@pytest.mark.parametrize("tier", _cpu.tiers())
@pytest.mark.parametrize("nodes", [[0, 1], [0, 0, 1, 2], [0, 1, 2, 3, 4], [1, 0, 0]])
def test_the_result_does_not_depend_on_the_nodes(rng, tier, nodes):
    layer = Layer(rng, hidden=768, width=256)  # five nodes have 32 rows and more of gate and up
    pool = _cpu.ThreadPool(len(nodes), nodes=nodes)
    assert pool.num_nodes == max(nodes) + 1
    matrices = [_cpu.Matrix(s.data, s.quant, s.shape) for s in (layer.gate, layer.up, layer.down)]
    for tokens in (1, 7, 100):
        x, ids, weights = routed(rng, tokens, 3, 6, 768)
        y = np.full_like(x, np.nan)
        _cpu.moe(pool, _cpu.Kernels(tier), *matrices, x, ids, weights, y)
        np.testing.assert_array_equal(y, layer.run(tier, 1, x, ids, weights))


def test_experts_narrower_than_the_nodes_are_many_leave_some_without_work(rng):
    layer = Layer(rng, hidden=256, width=256, quants=("Q8_0", "Q8_0", "Q8_0"))
    pool = _cpu.ThreadPool(12, nodes=list(range(12)))  # twelve nodes, eight runs of 32 rows
    matrices = [_cpu.Matrix(s.data, s.quant, s.shape) for s in (layer.gate, layer.up, layer.down)]
    x, ids, weights = routed(rng, 5, 3, 6, 256)
    y = np.full_like(x, np.nan)
    _cpu.moe(pool, _cpu.Kernels(), *matrices, x, ids, weights, y)
    np.testing.assert_array_equal(y, layer.run("", 1, x, ids, weights))


@pytest.mark.parametrize("nodes", [[0, 0], [0, 1], [0, 1, 0, 1, 2]])
def test_touching_memory_leaves_what_is_in_it(rng, nodes):
    data = rng.integers(0, 256, 7 * 96 * 1152, np.uint8)
    before = data.copy()
    _cpu.first_touch(_cpu.ThreadPool(len(nodes), nodes=nodes), data, 7, 96)
    np.testing.assert_array_equal(data, before)


def test_memory_that_cannot_be_touched_is_refused(rng):
    pool, data = _cpu.ThreadPool(2, nodes=[0, 1]), np.zeros(96, np.uint8)
    with pytest.raises(ValueError, match="96 bytes, expected a multiple of 5 x 7 rows"):
        _cpu.first_touch(pool, data, 5, 7)
    data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _cpu.first_touch(pool, data, 3, 32)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [([0], "1 entries"), ([0, 2], "no worker on node 1"), ([0, -1], "negative")],
)
def test_nodes_that_make_no_sense_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        _cpu.ThreadPool(2, nodes=nodes)

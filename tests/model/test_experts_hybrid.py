"""A prompt's experts on both sides, the GPU being a pretended one: its memory is the host's, its
streams do everything at once, and torch stands in for its kernels. tests/gpu has the same on a real
one.
"""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from expert_oracle import grouped_experts

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")
pytest.importorskip("triton", reason="the table of experts in VRAM needs it")

from hybrid_k2.backends import experts_cpu, experts_hybrid, footprint, registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.backends.expert_groups import GROUP
from hybrid_k2.backends.prefill_split import ExpertCosts
from hybrid_k2.backends.routing_statistics import SHARED_KEY, RoutingStatistics
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

EXPERTS, WIDTH, HIDDEN, TOKENS, TOP_K = 40, 64, 96, 48, 4
TOLERANCE = 2**-6  # bfloat16 there, activations of 8 bits here
RUNTIME = RuntimeConfig(num_threads=2)
BUS_HITS = torch.zeros(1, dtype=torch.int32)


class Event:
    def __init__(self, **_):
        pass

    def query(self):
        return True

    def elapsed_time(self, _):
        return 1.0

    def nothing(self, *_):
        pass

    record = synchronize = nothing


class Stream:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait_event(self, _):
        pass

    def wait_stream(self, _):
        pass


def dequantise(matrix):
    blocks, quant, shape = matrix
    return quant.dequantise(blocks.view(-1, quant.num_bytes(shape[-1]))).view(shape).bfloat16()


def silu_multiply(gate_up):
    gate, up = gate_up.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).bfloat16()


KERNELS = {
    "experts": {"grouped_experts": grouped_experts},
    "dequantise": {"dequantise": dequantise},
    "activation": {"silu_multiply": silu_multiply},
    "host_memory": {"fetch": lambda pinned, device: pinned.to(device, copy=True)},
}


@pytest.fixture
def pretended_gpu(monkeypatch):
    for name, stand_in in [
        ("Event", Event),
        ("Stream", Stream),
        ("stream", lambda stream: stream),
        ("current_stream", Stream),
    ]:
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory=False, **kwargs: empty(*shape, **kwargs)
    )
    over_blocks = lambda *matrix: matrix  # noqa: E731
    monkeypatch.setattr("hybrid_k2.kernels.matrix.over_blocks", over_blocks)
    monkeypatch.setattr(experts_hybrid, "register", lambda data: data)
    for name, functions in KERNELS.items():
        monkeypatch.setitem(sys.modules, f"hybrid_k2.kernels.{name}", SimpleNamespace(**functions))
    submit = experts_cpu.ExpertsCpu.submit
    events = {"routed": Event(), "copied": Event()}

    def submit_elsewhere(self, x, expert_ids, weights):
        slot = submit(self, x, expert_ids, weights)
        return experts_cpu.ExpertsSlot(
            slot.x, slot.expert_ids, slot.weights, slot.result_device, **events
        )

    monkeypatch.setattr(experts_cpu.ExpertsCpu, "submit", submit_elsewhere)


def stored(rng, quant, shape):
    form = by_name(quant)
    blocks = random_blocks(rng, form, int(np.prod(shape)) // form.block_size, shape[-1] ** -0.5)
    return StoredTensor("random", form, shape, np.ascontiguousarray(blocks).reshape(-1))


def layer(rng, quants, context, **kwargs):
    """The layer's experts on the CPU, and on both sides."""
    shapes = [(EXPERTS, WIDTH, HIDDEN)] * 2 + [(EXPERTS, HIDDEN, WIDTH)]
    names = ("gate_proj", "up_proj", "down_proj")
    tensors = {n: stored(rng, q, s) for n, q, s in zip(names, quants, shapes, strict=True)}
    on_cpu = registry.create("experts_cpu", "Experts", tensors, context)
    return on_cpu, experts_hybrid.ExpertsHybrid(tensors, context, "cpu", **kwargs)


def prompt(rng, num_tokens=TOKENS):
    x = torch.from_numpy(rng.standard_normal((num_tokens, HIDDEN), np.float32))
    ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_tokens)])
    ids[rng.random(ids.shape) < 0.1] = -1
    weights = rng.uniform(0.1, 1, ids.shape).astype(np.float32)
    return x, torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(weights)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("gpu_experts", [0, 6])
@pytest.mark.parametrize(
    "quants", [("Q4_0", "Q4_0", "Q8_0"), ("Q4_0", "Q5_0", "Q4_0"), ("Q8_0", "Q8_0", "Q4_0")]
)
def test_both_sides_together_give_what_the_cpu_gives(quants, gpu_experts):
    if gpu_experts and quants[0] != quants[1]:
        pytest.skip("refused: gate and up of different types")
    rng = np.random.default_rng(0)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    layers = [
        layer(rng, quants, context, gpu_experts=gpu_experts, stream_mb=stream_mb)
        for stream_mb in (3, 3)
    ]
    shared = context.shared["experts_hybrid cpu"]
    seen = set()
    for cpu_s, gpu_s in [(1e-3, 1e-3), (1e-3, 1e-9), (1e-9, 1e-3)]:
        shared.split.cpu, shared.split.gpu = ExpertCosts(cpu_s), ExpertCosts(gpu_s)
        for on_cpu, on_both in layers:
            inputs = prompt(rng)
            expected = on_cpu.sync(on_cpu.submit(*inputs))
            y = on_both.sync(on_both.submit(*inputs))
            assert (y - expected).norm() < TOLERANCE * expected.norm()
            times = on_both.times[-1]
            assert times.num_on_cpu + times.num_on_gpu >= np.count_nonzero(
                np.bincount(inputs[1].flatten() + 1)[1:]
            )
            seen.add((times.num_on_gpu > gpu_experts, times.num_on_cpu > 0, times.num_ahead > 0))
    assert (True, True, True) in seen, "some were sent ahead of their layer"
    assert (True, False, True) in seen and any(not sent for sent, _, _ in seen)


@pytest.mark.usefixtures("pretended_gpu")
def test_layers_of_larger_experts_fit_the_places_that_all_share():
    rng = np.random.default_rng(1)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    layers = [layer(rng, (q,) * 3, context, stream_mb=2) for q in ("Q4_0", "Q8_0")]
    shared = context.shared["experts_hybrid cpu"]
    shared.split.cpu, shared.split.gpu = ExpertCosts(1e-3), ExpertCosts(1e-9)
    for on_cpu, on_both in layers:
        inputs = prompt(rng)
        expected = on_cpu.sync(on_cpu.submit(*inputs))
        y = on_both.sync(on_both.submit(*inputs))
        assert on_both.times[-1].num_on_cpu == 0
        assert (y - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("tokens", [31, 64])  # on the CPU alone; on both
def test_experts_are_added_to_the_shared_experts_result(tokens):
    rng = np.random.default_rng(3)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    on_cpu, on_both = layer(rng, ("Q4_0",) * 3, context)
    inputs = prompt(rng, tokens)
    expected = on_cpu.sync(on_cpu.submit(*inputs))
    shared = torch.full_like(expected, 2)
    both = on_both.sync(on_both.submit(*inputs), shared)
    assert both is shared and (both - 2 - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.usefixtures("pretended_gpu")
def test_a_few_tokens_stay_on_the_cpu():
    rng = np.random.default_rng(2)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    on_cpu, on_both = layer(rng, ("Q4_0",) * 3, context)
    inputs = prompt(rng, 31)
    assert torch.equal(on_both.sync(on_both.submit(*inputs)), on_cpu.sync(on_cpu.submit(*inputs)))
    assert not on_both.times


@pytest.mark.usefixtures("pretended_gpu")
def test_experts_that_were_used_most_before_the_restart_are_in_vram_from_the_start():
    statistics = RoutingStatistics(EXPERTS)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME), 7)
    context.shared[SHARED_KEY] = statistics
    rng = np.random.default_rng(7)
    statistics.record(7, np.where(np.isin(np.arange(EXPERTS), [5, 30, 31]), 9, 1))
    _, on_both = layer(rng, ("Q4_0",) * 3, context, gpu_experts=3)
    assert sorted(on_both.resident) == [5, 30, 31]
    inputs = prompt(rng)
    on_both.sync(on_both.submit(*inputs))
    counts = np.bincount(inputs[1].flatten() + 1, minlength=EXPERTS + 1)[1:]
    assert statistics.counts(7)[5] == 4.5 + counts[5]


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(
    ("kwargs", "held"), [({"gpu_experts": 3}, 3), ({"gpu_experts_mb": 1}, 24), ({}, 0)]
)
def test_the_plan_counts_the_bytes_of_experts_that_stay_in_vram(kwargs, held):
    config = SimpleNamespace(
        num_hidden_layers=5,
        first_k_dense_replace=1,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTH,
        hidden_size=HIDDEN,
        max_position_embeddings=4096,
    )
    context = BackendContext(config, RUNTIME, open_cpu_kernels(RUNTIME), 1)
    _, on_both = layer(np.random.default_rng(8), ("Q4_0",) * 3, context, **kwargs)
    assert len(list(on_both.resident or ())) == held
    shapes = [(EXPERTS, WIDTH, HIDDEN)] * 2 + [(EXPERTS, HIDDEN, WIDTH)]
    tensors = {str(i): stored(np.random.default_rng(), "Q4_0", s) for i, s in enumerate(shapes)}
    spec = registry.BACKENDS["experts_hybrid"]

    def planned(**others):
        resolved = spec.resolve_kwargs(others)
        return footprint.footprint(spec, "Experts", tensors, resolved, config, RUNTIME).vram

    extra = planned(**kwargs)["cuda:0"] - planned()["cuda:0"]
    assert extra == held * sum(tensor.num_bytes for tensor in tensors.values()) // EXPERTS


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(("gpu_experts", "over_bus"), [(6, False), (0, True), (6, True)])
def test_a_captured_steps_experts_are_found_in_vram_and_in_host_memory(
    gpu_experts, over_bus, monkeypatch
):
    # The pages of the first and of the last expert are another's, too.
    monkeypatch.setattr(experts_hybrid, "register", lambda data: data[32:-32])
    rng = np.random.default_rng(5)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    kwargs = {"gpu_experts": gpu_experts, "over_bus": over_bus}
    on_cpu, on_both = layer(rng, ("Q4_0",) * 3, context, **kwargs)
    x, ids, weights = prompt(rng, 4)
    hits = on_both.gpu_hits(ids.shape, BUS_HITS)
    assert (hits.resident is not None, hits.bus is not None) == (bool(gpu_experts), over_bus)
    assert hits.bus_hits is BUS_HITS
    hits.weights.copy_(weights)
    taken = torch.zeros_like(ids, dtype=torch.bool)
    for part in (hits.resident, hits.bus):
        if part is not None:
            offsets, of_part = part
            there = (ids >= 0) & (offsets[ids.clamp(min=0).long()] >= 0) & ~taken
            of_part.copy_(torch.where(there, ids, -1))
            taken |= there
    assert taken.any() and not torch.isin(ids[taken], torch.tensor([0, EXPERTS - 1])).any()
    rest = on_cpu.sync(on_cpu.submit(x, torch.where(taken, -1, ids), weights))
    expected = on_cpu.sync(on_cpu.submit(x, ids, weights))
    y = rest + on_both.compute_hits(x, hits)
    assert (y - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.usefixtures("pretended_gpu")
def test_without_experts_of_its_own_the_gpu_has_no_part_in_a_captured_step():
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    on_cpu, on_both = layer(np.random.default_rng(6), ("Q4_0",) * 3, context, over_bus=False)
    quants = ("Q4_0", "Q5_0", "Q4_0")
    _, mixed = layer(np.random.default_rng(6), quants, context)
    for experts in (on_cpu, on_both, mixed):
        assert experts.on_bus is None and experts.gpu_hits((4, TOP_K), BUS_HITS) is None


@pytest.mark.usefixtures("pretended_gpu")
def test_experts_of_the_next_layer_are_sent_while_the_cpu_still_computes(monkeypatch):
    rng = np.random.default_rng(3)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    (_, first), (_, second) = (layer(rng, ("Q4_0",) * 3, context) for _ in range(2))
    shared = context.shared["experts_hybrid cpu"]
    shared.split.cpu, shared.split.gpu = ExpertCosts(1e-3), ExpertCosts(1e-3)
    sent_ahead, moe = threading.Event(), context.kernels.moe
    in_time = []

    def slow_moe(*args, **kwargs):
        in_time.append(sent_ahead.wait(timeout=5))
        return moe(*args, **kwargs)

    send = second._send
    monkeypatch.setattr(second, "_send", lambda experts: (sent_ahead.set(), send(experts))[1])
    monkeypatch.setattr(context.kernels, "moe", slow_moe)
    inputs = prompt(rng)
    first.sync(first.submit(*inputs))
    assert in_time == [True]
    ahead = sum(len(group.experts) for group in shared.ahead[1])
    second.sync(second.submit(*inputs))
    assert second.times[-1].num_ahead == ahead > 0


@pytest.mark.usefixtures("pretended_gpu")
def test_a_step_that_fails_leaves_the_ring_usable(monkeypatch):
    rng = np.random.default_rng(4)
    context = BackendContext(SimpleNamespace(), RUNTIME, open_cpu_kernels(RUNTIME))
    on_cpu, on_both = layer(rng, ("Q4_0",) * 3, context, stream_mb=0)
    shared = context.shared["experts_hybrid cpu"]
    shared.split.cpu, shared.split.gpu = ExpertCosts(1e-3), ExpertCosts(1e-9)
    inputs = prompt(rng)
    with monkeypatch.context() as patch:
        patch.setattr(on_both, "_adopt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            on_both.sync(on_both.submit(*inputs))
    expected = on_cpu.sync(on_cpu.submit(*inputs))
    y = on_both.sync(on_both.submit(*inputs))
    assert (y - expected).norm() < TOLERANCE * expected.norm()


def test_the_plan_counts_the_group_that_is_decoded_together():
    assert footprint._EXPERT_GROUP == GROUP

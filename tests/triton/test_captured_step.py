"""A captured decode step without a GPU: run as it is written, its small kernels interpreted, the
CPU's part given at the first or at the last moment that the protocol allows.

Attention and the GPU's experts, which tests beside this one interpret, are torch's here. What a
real GPU adds, tests/gpu tests: capture, waiting, memory that both sides map.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from expert_oracle import grouped_experts

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2.backends import experts_hybrid, registry
from hybrid_k2.backends.attention_gpu import AttentionGpu
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.backends.experts_hybrid import ExpertsHybrid
from hybrid_k2.backends.linear import LinearGpu
from hybrid_k2.backends.mlp import MlpGpu
from hybrid_k2.backends.norm import Norm
from hybrid_k2.backends.router import Router
from hybrid_k2.bench.synthetic_model import K2, Placement, synthetic_modules
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.kernels import handoff
from hybrid_k2.model import decode_graph
from hybrid_k2.model.decode_graph import DecodeGraphs
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.span import Span

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real step")

RUNTIME = RuntimeConfig(num_threads=2)
CONFIG = replace(
    K2,
    vocab_size=64,
    hidden_size=256,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    n_routed_experts=8,
    num_experts_per_tok=4,
    num_attention_heads=2,
    q_lora_rank=64,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    routed_scaling_factor=1.0,
)
GPU_CLASSES = {
    "Norm": Norm,
    "Linear": LinearGpu,
    "MLP": MlpGpu,
    "Attention": AttentionGpu,
    "Router": Router,
    "Experts": ExpertsHybrid,
}
NUM_PAGES = 8


@pytest.fixture(scope="module")
def kernels():
    return open_cpu_kernels(RUNTIME)


def mla_decode(query, pages, block_table, lengths, scale, rank):
    attended = []
    for q, table, length in zip(query.float(), block_table, lengths.tolist(), strict=True):
        rows = pages[table.long()].flatten(0, 1)[:length].float()
        attended.append((q @ rows.T * scale).softmax(-1) @ rows[:, :rank])
    return torch.stack(attended)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Its memory is the host's, and its streams do everything at once."""
    nothing = SimpleNamespace(synchronize=lambda: None)
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: nothing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for name in ("empty", "zeros"):
        make = getattr(torch, name)
        unpinned = lambda *a, make=make, pin_memory=False, **k: make(*a, **k)  # noqa: E731
        monkeypatch.setattr(torch, name, unpinned)
    monkeypatch.setattr("hybrid_k2.kernels.mla_decode.mla_decode", mla_decode)
    monkeypatch.setattr("hybrid_k2.kernels.experts.grouped_experts", grouped_experts)
    monkeypatch.setattr(experts_hybrid, "register", lambda data: data)


def gpu_modules(tensors_of, kernels, experts_kwargs):
    """The GPU's backends, on the host, over the tensors of modules that were made before."""
    modules, shared = {}, {}
    for name, module_class, layer_idx, tensors in tensors_of:
        context = BackendContext(CONFIG, RUNTIME, kernels, layer_idx, shared)
        kwargs = {"device": "cpu"}
        if module_class in ("Linear", "MLP"):
            kwargs["weights"] = "bfloat16"
        if module_class == "Experts":
            kwargs |= {"stream_mb": 1} | experts_kwargs
        if module_class == "Embedding":
            modules[name] = registry.create("embedding", module_class, tensors, context)
        elif module_class == "Router":
            modules[name] = router = Router(tensors, context)
            router._weight = tensors["weight"].dequantise()
        else:
            modules[name] = GPU_CLASSES[module_class](tensors, context, **kwargs)
    return modules


class Processor:
    """The CPU's side of the hand-off: answers each call when it is published, or when it is waited
    for; either may happen.
    """

    def __init__(self, graphs, kernels, is_early, monkeypatch):
        self._handoff, self._kernels, self._is_early = graphs._handoff, kernels, is_early
        self._calls = []
        for experts in graphs._experts:
            self._calls += [experts.matrices] * (2 if experts.deferred_experts else 1)
        self.num_on_gpu = 0
        route, publish = handoff.route_and_publish, handoff.publish

        def route_and_publish(logits, bias, ids, weights, flag, step, **kwargs):
            route(logits, bias, ids, weights, **kwargs)
            self.num_on_gpu += int((ids < 0).sum())
            self._published(flag, step, len(ids))

        def publish_late(ids, expert_ids, flag, step):
            publish(ids, expert_ids)
            self._published(flag, step, len(ids))

        monkeypatch.setattr(handoff, "route_and_publish", route_and_publish)
        monkeypatch.setattr(handoff, "publish", publish_late)
        monkeypatch.setattr(handoff, "wait_and_add", self._wait_and_add)

    def _published(self, flag, step, num_tokens):
        flag[0] = int(step)
        if self._is_early:
            self._answer(self._index(flag, self._handoff._published), num_tokens)

    def _wait_and_add(self, h, added, y, answered, passed, step):
        call = self._index(answered, self._handoff._answered)
        assert self._handoff._published[call, 0] == int(step), "waits for what it did not ask"
        if not self._is_early:
            self._answer(call, len(h))
        assert y.data_ptr() == self._handoff.y.data_ptr()
        h += added + y

    @staticmethod
    def _index(flag, flags):
        return (flag.data_ptr() - flags.data_ptr()) // (flags.stride(0) * flags.element_size())

    def _answer(self, call, num_tokens):
        x, ids, weights = (
            memory[:num_tokens]
            for memory in (self._handoff.x, self._handoff.expert_ids, self._handoff.weights)
        )
        self._handoff.y[:num_tokens] = self._kernels.moe(*self._calls[call], x, ids, weights)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(
    ("experts_kwargs", "bus_share", "is_early"),
    [
        ({}, 0.0, True),
        ({"gpu_experts": 3, "over_bus": True}, 0.3, False),
        ({"deferred_experts": 2}, 0.0, True),
        ({"deferred_experts": 2}, 0.0, False),
    ],
)
def test_a_captured_step_gives_the_logits_of_the_cpu(
    kernels, experts_kwargs, bus_share, is_early, monkeypatch
):
    made, create = [], registry.create

    def recorded(name, module_class, tensors, context, kwargs=None):
        made.append((module_class, context.layer_idx, tensors))
        return create(name, module_class, tensors, context, kwargs)

    deferring = {k: v for k, v in experts_kwargs.items() if k == "deferred_experts"}
    placement = Placement("cpu", "F32", "Q4_0", experts_kwargs=deferring)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "create", recorded)
        modules = synthetic_modules(CONFIG, placement, RUNTIME, kernels)
    tensors_of = [(name, *each) for name, each in zip(modules, made, strict=True)]
    on_cpu = KimiK2(CONFIG, modules, NUM_PAGES)
    theirs = gpu_modules(tensors_of, kernels, experts_kwargs)
    on_gpu = KimiK2(CONFIG, theirs, NUM_PAGES)

    prompts = [[5, 9, 33, 2], [17, 40]]
    caches, copies = [], []
    for prompt in prompts:
        cache, copy = on_cpu.new_cache(), on_gpu.new_cache()
        on_cpu.forward([Span(cache, prompt, "none")])
        copy.reserve(len(prompt))
        for layer_idx in range(CONFIG.num_hidden_layers):
            copy.write(layer_idx, 0, torch.cat(list(cache.read(layer_idx, len(prompt)))))
        copy.length = len(prompt)
        caches.append(cache)
        copies.append(copy)

    graphs = DecodeGraphs(CONFIG, theirs, on_gpu.pool, on_gpu._rope)
    graphs.bus_share = bus_share
    processor = Processor(graphs, kernels, is_early, monkeypatch)

    def captured(num_sequences):
        step = decode_graph._Step(CONFIG, num_sequences, NUM_PAGES)
        step.graph = SimpleNamespace(replay=lambda: graphs._forward(step))
        return step

    monkeypatch.setattr(graphs, "_capture", captured)
    monkeypatch.setattr(graphs._handoff, "serve", lambda num_tokens: np.zeros((1, 2)))
    for token_ids in ([3, 50], [61, 7]):
        expected = on_cpu.forward(
            [Span(c, [i], "last") for c, i in zip(caches, token_ids, strict=True)]
        )
        for copy in copies:
            copy.reserve(copy.length + 1)
        got = graphs.run([Span(c, [i], "last") for c, i in zip(copies, token_ids, strict=True)])
        for ours, exact in zip(got, expected, strict=True):
            assert (ours - exact).norm() < 2**-5 * exact.norm()
    assert (processor.num_on_gpu > 0) == bool(experts_kwargs)

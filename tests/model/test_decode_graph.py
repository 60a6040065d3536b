"""Which placements decode as one captured step; what it computes is tested in tests/gpu."""

from types import SimpleNamespace

import pytest
import torch

from hybrid_k2.backends.attention_gpu import AttentionGpu
from hybrid_k2.backends.experts_cpu import ExpertsCpu
from hybrid_k2.backends.linear import LinearCpu, LinearGpu
from hybrid_k2.backends.mlp import MlpGpu
from hybrid_k2.backends.norm import Norm
from hybrid_k2.backends.router import Router
from hybrid_k2.model import decode_graph
from hybrid_k2.model.decode_graph import DecodeGraphs, refusal

CONFIG = SimpleNamespace(q_lora_rank=1536)


def on(backend, device="cuda:0"):
    """A module that was placed but never built: no GPU is needed."""
    module = object.__new__(backend)
    module.device = torch.device(device)
    return module


def experts(**kernels):
    module = object.__new__(ExpertsCpu)
    module.kernels = SimpleNamespace(**kernels)
    return module


@pytest.fixture
def modules():
    layer = "model.layers.1"
    return {
        "model.embed_tokens": object(),
        f"{layer}.input_layernorm": on(Norm),
        f"{layer}.self_attn": on(AttentionGpu),
        f"{layer}.self_attn.o_proj": on(LinearGpu),
        f"{layer}.mlp.gate": on(Router),
        f"{layer}.mlp.shared_experts": on(MlpGpu),
        f"{layer}.mlp.experts": experts(handoff=None),
        "lm_head": on(LinearGpu),
    }


def test_all_but_the_experts_on_one_gpu_is_captured(modules):
    assert refusal(CONFIG, modules) is None


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("lm_head", on(LinearGpu, "cuda:1"), "several GPUs"),
        ("model.layers.1.input_layernorm", on(Norm, "cpu"), "input_layernorm runs on Norm"),
        ("lm_head", object.__new__(LinearCpu), "lm_head runs on LinearCpu"),
        ("model.layers.1.mlp.experts", experts(), "does not run on the CPU's C++ kernels"),
        ("model.layers.1.mlp.experts", object(), "does not run on the CPU's C++ kernels"),
    ],
)
def test_anything_else_is_refused_by_name(modules, name, module, says):
    assert says in refusal(CONFIG, modules | {name: module})


def test_queries_without_a_low_rank_are_refused(modules):
    assert refusal(SimpleNamespace(q_lora_rank=None), modules) == "queries have no low rank"


@pytest.mark.parametrize(
    ("bus_s", "together_s", "share"),
    [
        (1.0, 0.0, 4 / 8),  # as fast as the CPU
        (3.0, 0.0, 2 / 8),
        (0.1, 0.0, 4 / 8),  # no more than half
        (1.0, 9.0, 0.0),  # in each other's way
        (99.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_the_bus_takes_the_share_with_which_a_step_is_fastest(
    bus_s, together_s, share, num_sequences, monkeypatch
):
    graphs = object.__new__(DecodeGraphs)
    graphs._config = SimpleNamespace(num_experts_per_tok=8)
    step = SimpleNamespace(h=torch.zeros(num_sequences, 4), bus_hits=[None])
    now, seen = [0.0], []

    def replay(step, num_sequences):
        taken = step.bus_hits[0] / (8 * num_sequences)
        seen.append(step.h.clone())
        cold_s = 9.0 / len(seen) ** 2
        noise_s = 0.5 * (len(seen) % 3)  # one step of three is not disturbed
        now[0] += cold_s + noise_s + max(1 - taken, bus_s * taken) + together_s * taken

    monkeypatch.setattr(graphs, "_replay", replay)
    monkeypatch.setattr(decode_graph.time, "perf_counter", lambda: now[0])
    assert graphs._measured_share(step, num_sequences) == share
    assert len(torch.stack(seen).unique()) == len(seen) * 4 * num_sequences, "each token another"

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
from hybrid_k2.model.decode_graph import refusal

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

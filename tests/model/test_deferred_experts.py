"""Experts that are added a layer later, against a plain float32 loop over the same stored weights.

The equations are KTransformers' (SOSP 2025): of a decoded token's experts those of most weight are
added in their layer, the others in the next one; the last layer defers none.
"""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from k2_modules import TINY_K2

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.backends.reference import swiglu
from hybrid_k2.bench.synthetic_model import Placement, synthetic_modules
from hybrid_k2.cli.perplexity import command
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import BadInputError
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.span import Span

RUNTIME = RuntimeConfig(num_threads=2)
CONFIG = replace(
    TINY_K2, q_lora_rank=64, n_routed_experts=16, num_experts_per_tok=4, routed_scaling_factor=2.0
)
PROMPT, CONTINUED = list(range(40, 60)), [7, 300, 5]


@pytest.fixture(scope="module")
def kernels():
    return open_cpu_kernels(RUNTIME)


@pytest.fixture
def stored(monkeypatch):
    """The tensors of every module of the model built last, by module name."""
    seen, create = [], registry.create

    def recorded(name, module_class, tensors, context, kwargs=None):
        seen.append((module_class, context.layer_idx, tensors))
        return create(name, module_class, tensors, context, kwargs)

    monkeypatch.setattr(registry, "create", recorded)
    return seen


def model(kernels, count):
    kwargs = {"deferred_experts": count} if count else None
    placement = Placement("cpu", dense_quant="F32", expert_quant="Q8_0", experts_kwargs=kwargs)
    return KimiK2(CONFIG, synthetic_modules(CONFIG, placement, RUNTIME, kernels), 8)


def decoded(made):
    """Logits of tokens that follow a prompt, one step each."""
    cache = made.new_cache()
    made.forward([Span(cache, PROMPT, "none")])
    return torch.cat([made.forward([Span(cache, [i], "last")])[0] for i in CONTINUED])


def plainly(made, stored, count):
    """The same, the experts of each layer computed one by one from their decoded weights."""
    tensors = {(module_class, idx): each for module_class, idx, each in stored}

    def experts(layer_idx, x, may_defer):
        router, routed = tensors["Router", layer_idx], tensors["Experts", layer_idx]
        scores = (router["weight"].dequantise() @ x).sigmoid()
        biased = scores + router["e_score_correction_bias"].dequantise()
        ids = biased.topk(CONFIG.num_experts_per_tok).indices
        weights = scores[ids] / scores[ids].sum() * CONFIG.routed_scaling_factor
        order = weights.argsort(descending=True)
        parts = [
            weights[k] * swiglu(x, *(routed[n].dequantise(int(ids[k])) for n in NAMES))
            for k in order
        ]
        last = layer_idx == CONFIG.num_hidden_layers - 1
        early = len(parts) - count if may_defer and not last else len(parts)
        return sum(parts[:early]), sum(parts[early:], torch.zeros_like(x))

    class Plain:
        def __init__(self, layer_idx, shared):
            self._layer_idx, self._shared_experts = layer_idx, shared

        def __call__(self, x, may_defer):
            pairs = [experts(self._layer_idx, row, may_defer) for row in x]
            early, late = (torch.stack(rows) for rows in zip(*pairs, strict=True))
            return self._shared_experts(x) + early, late

    for layer_idx, layer in enumerate(made._layers):
        if layer._experts is not None:
            layer._experts = Plain(layer_idx, layer._experts._shared_experts)
    return decoded(made)


NAMES = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("count", [1, 3])
def test_the_lightest_experts_are_added_a_layer_later(kernels, stored, count):
    made = model(kernels, count)
    y = decoded(made)
    expected = plainly(made, stored, count)
    exact = plainly(made, stored, 0)
    assert (y - expected).norm() < 2**-6 * expected.norm()  # activations of 8 bits
    assert (y - expected).norm() < 0.25 * (exact - expected).norm()


def test_a_rule_of_none_leaves_the_logits_as_they_are_to_the_bit(kernels):
    placement = Placement("cpu", experts_kwargs={"deferred_experts": 0})
    made = [
        KimiK2(CONFIG, synthetic_modules(CONFIG, each, RUNTIME, kernels), 8)
        for each in (Placement("cpu"), placement)
    ]
    assert torch.equal(*(decoded(each) for each in made))


def test_a_prompt_defers_nothing(kernels):
    logits = []
    for count in (0, 3):
        made = model(kernels, count)
        logits.append(made.forward([Span(made.new_cache(), PROMPT, "all")])[0])
    assert torch.equal(*logits)


def test_the_last_layer_defers_none_and_the_others_what_the_rule_says(kernels):
    made = model(kernels, 2)
    counts = [layer._experts._experts.deferred_experts for layer in made._layers[1:]]
    assert counts == [2] * (len(counts) - 1) + [0]


@pytest.mark.parametrize("count", [4, 100])
def test_a_number_that_leaves_no_expert_is_refused(kernels, count):
    context = BackendContext(CONFIG, RUNTIME, kernels, 1)
    with pytest.raises(BadInputError, match=f"deferred_experts: {count}, expected 0 to 3"):
        registry.create("experts_cpu", "Experts", {}, context, {"deferred_experts": count})


def test_what_it_costs_shows_token_by_token_and_not_in_prompts(tmp_path):
    text, rules = tmp_path / "text.txt", tmp_path / "deferred.yaml"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    rules.write_text(
        "rules:\n"
        "  - match: {class: Experts}\n"
        "    replace: {backend: experts_cpu, kwargs: {deferred_experts: 3}}\n"
    )
    options = ["--text", str(text), "--context", "16", "--chunks", "2", "--rules", "cpu", "--json"]

    def divergence(*more):
        arguments = [*options, "--against", str(rules), *more]
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        return json.loads(result.stdout)["against"]["kl_mean"]

    assert abs(divergence()) < 1e-9 and divergence("--decode") > 1e-6

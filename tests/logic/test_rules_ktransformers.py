"""KTransformers' rule files: translated, with a note for every rule that has no meaning here."""

import pytest
from k2_modules import REAL_K2, k2_modules

from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import RuleError
from hybrid_k2.rules import Gpu, Hardware, Plan, make_plan, plan_table
from hybrid_k2.rules.files import parse_rule_text

MODULES = k2_modules(REAL_K2, experts="Q4_0")
HARDWARE = Hardware(
    ram_bytes=1 << 40,
    ram_available=1 << 40,
    cpus=64,
    gpus=tuple(Gpu(f"cuda:{index}", "Fake", 48 << 30, 47 << 30) for index in range(2)),
)

# In the format of their files for DeepSeek-V3, with every kind of rule that those have.
TWO_GPUS = r"""
- match:
    class: ktransformers.models.modeling_deepseek_v3.DeepseekV3YarnRotaryEmbedding
  replace:
    class: ktransformers.operators.RoPE.YarnRotaryEmbeddingV3
    kwargs: {generate_device: "cuda", prefill_device: "cuda"}
- match:
    name: "^lm_head$"
    class: torch.nn.Linear
  replace:
    class: ktransformers.operators.linear.KTransformersLinear
    kwargs:
      generate_device: "cuda:1"
      prefill_device: "cuda:1"
      generate_op: "KLinearTorch"
      prefill_op: "KLinearTorch"
- match:
    name: "^model\\.layers\\.(3[0-9]|[45][0-9]|60)\\.(?!self_attn\\.kv_b_proj).*$"
    class: torch.nn.Linear
  replace:
    class: ktransformers.operators.linear.KTransformersLinear
    kwargs: {generate_device: "cuda:1", generate_op: "KLinearMarlin"}
- match:
    name: "^model\\.layers\\.(?!.*self_attn\\.kv_b_proj).*$"
    class: torch.nn.Linear
  replace:
    class: ktransformers.operators.linear.KTransformersLinear
    kwargs: {generate_device: "cuda", generate_op: "KLinearMarlin"}
- match:
    name: "^model\\.layers\\..*\\.mlp$"
    class: ktransformers.models.modeling_deepseek_v3.DeepseekV3MoE
  replace:
    class: ktransformers.operators.experts.KDeepseekV3MoE
    kwargs: {generate_device: "cuda", prefill_device: "cuda"}
- match:
    class: ktransformers.models.modeling_deepseek_v3.MoEGate
  replace:
    class: ktransformers.operators.gate.KMoEGate
    kwargs: {generate_device: "cuda:0", prefill_device: "cuda:0"}
- match:
    name: "^model\\.layers\\..*\\.mlp\\.experts$"
  replace:
    class: ktransformers.operators.experts.KTransformersExperts
    kwargs:
      prefill_device: "cuda"
      prefill_op: "KExpertsTorch"
      generate_device: "cpu"
      generate_op: "KExpertsCPU"
      out_device: "cuda"
  recursive: False
- match:
    name: "^model\\.layers\\.(3[0-9]|[45][0-9]|60)\\.self_attn$"
  replace:
    class: ktransformers.operators.attention.KDeepseekV2Attention
    kwargs: {generate_device: "cuda:1", absorb_for_prefill: False}
- match:
    name: "^model\\.layers\\..*\\.self_attn$"
  replace:
    class: ktransformers.operators.attention.KDeepseekV2Attention
    kwargs: {generate_device: "cuda"}
- match:
    name: "^model$"
  replace:
    class: ktransformers.operators.models.KDeepseekV2Model
    kwargs: {per_layer_prefill_intput_threshold: 0, transfer_map: {30: "cuda:1"}}
- match:
    name: "^model.embed_tokens"
  replace:
    class: "default"
    kwargs: {generate_device: "cpu", prefill_device: "cpu"}
- match:
    name: "(^model\\.layers\\.(3[0-9]|[45][0-9]|60)\\.)|(^model\\.norm$)"
  replace:
    class: "default"
    kwargs: {generate_device: "cuda:1", prefill_device: "cuda:1"}
"""


def plan(text: str) -> Plan:
    """The real K2's plan under that text."""
    rules = parse_rule_text(text.encode(), "kt.yaml")
    return make_plan(MODULES, REAL_K2, rules, RuntimeConfig(), HARDWARE)


@pytest.fixture(scope="module")
def two_gpus() -> Plan:
    return plan(TWO_GPUS)


@pytest.mark.parametrize(
    ("name", "backend", "kwargs"),
    [
        ("lm_head", "linear_gpu", {"device": "cuda:1", "weights": "bfloat16"}),
        ("model.layers.4.self_attn.q_a_proj", "linear_gpu", {"device": "cuda:0"}),
        ("model.layers.44.self_attn.o_proj", "linear_gpu", {"device": "cuda:1"}),
        ("model.layers.0.mlp", "mlp_gpu", {"device": "cuda:0", "weights": "stored"}),
        ("model.layers.60.mlp.shared_experts", "mlp_gpu", {"device": "cuda:1"}),
        ("model.layers.1.mlp.experts", "experts_cpu", {}),
        ("model.layers.60.mlp.experts", "experts_cpu", {}),
        (
            "model.layers.29.self_attn",
            "attention_gpu",
            {"device": "cuda:0", "kv_dtype": "bfloat16"},
        ),
        ("model.layers.30.self_attn", "attention_gpu", {"device": "cuda:1"}),
        ("model.layers.45.mlp.gate", "router", {"device": "cuda:0"}),
        ("model.layers.45.input_layernorm", "norm", {"device": "cuda:1"}),
        ("model.layers.5.input_layernorm", "norm", {"device": "cuda:0"}),
        ("model.norm", "norm", {"device": "cuda:1"}),
        ("model.embed_tokens", "embedding", {"device": "cpu"}),
    ],
)
def test_a_module_goes_where_their_file_puts_it(
    two_gpus: Plan, name: str, backend: str, kwargs: dict[str, str]
) -> None:
    (entry,) = [entry for entry in two_gpus.entries if entry.module.name == name]
    assert entry.backend == backend
    assert kwargs.items() <= entry.kwargs.items()


def test_what_is_left_out_is_noted_by_line(two_gpus: Plan) -> None:
    notes = "\n".join(two_gpus.notes)
    assert "kt.yaml: a KTransformers rule file, translated" in notes
    assert "kt.yaml:2: ignored: YarnRotaryEmbeddingV3" in notes
    assert ": ignored: KDeepseekV3MoE" in notes and ": ignored: KDeepseekV2Model" in notes
    assert "ignored kwargs: prefill_device, prefill_op, out_device" in notes
    assert "note: kt.yaml:2: ignored" in plan_table(two_gpus)


def test_a_rule_of_theirs_that_matches_nothing_is_a_note() -> None:
    text = (
        '- match: {name: "^model\\\\.layers\\\\.7[0-9]", class: torch.nn.Linear}\n'
        '  replace: {class: "default", kwargs: {generate_device: "cpu"}}\n'
    )
    assert "kt.yaml:1: the rule matches nothing" in "\n".join(plan(text).notes)


def test_a_rule_for_the_three_linears_of_an_mlp_places_our_one_module() -> None:
    text = (
        '- match: {name: "^model.layers.(0|7).*mlp.*(gate|up)_proj$", class: torch.nn.Linear}\n'
        '  replace: {class: "default", kwargs: {generate_device: "cpu"}}\n'
    )
    placed = [entry.module.name for entry in plan(text).entries if entry.rule_line]
    assert placed == ["model.layers.0.mlp", "model.layers.7.mlp.shared_experts"]


def test_a_cpu_device_or_operator_places_linears_on_the_cpu() -> None:
    for kwargs in (
        "{generate_device: cpu}",
        "{generate_device: cuda, generate_op: KLinearCPUInfer}",
    ):
        text = (
            "- match: {class: torch.nn.Linear}\n"
            "  replace:\n"
            "    class: ktransformers.operators.linear.KTransformersLinear\n"
            f"    kwargs: {kwargs}\n"
        )
        placed = {entry.module.module_class: entry.backend for entry in plan(text).entries}
        assert (placed["Linear"], placed["MLP"]) == ("linear_cpu", "mlp_cpu")


EXPERTS = "ktransformers.operators.experts.KTransformersExperts"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            f"- match: {{name: experts}}\n  replace:\n    class: {EXPERTS}\n"
            "    kwargs:\n      generate_device: cuda\n",
            "kt.yaml:5: generate_device: cuda:0: routed experts run on the CPU only",
        ),
        (
            f"- match: {{name: experts}}\n  replace: {{class: {EXPERTS}s}}\n",
            "kt.yaml:2: unknown KTransformers class .*did you mean 'KTransformersExperts'",
        ),
        (
            f"- match: {{class: torch.nn.Conv2d}}\n  replace: {{class: {EXPERTS}}}\n",
            "kt.yaml:1: unknown KTransformers class 'torch.nn.Conv2d'",
        ),
        (
            f"- match: {{layers: 3}}\n  replace: {{class: {EXPERTS}}}\n",
            "kt.yaml:1: unknown key 'layers' in match",
        ),
        (
            "- match: {name: '('}\n  replace: {class: default, kwargs: {generate_device: cpu}}\n",
            "kt.yaml:1: bad regular expression",
        ),
        (
            "- match: {name: mlp}\n  replace: {class: default, kwargs: {generate_device: npu}}\n",
            "kt.yaml:2: generate_device: 'npu' is not cpu, cuda or cuda:N",
        ),
    ],
)
def test_what_would_be_placed_elsewhere_than_they_say_is_an_error(text: str, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        plan(text)

"""On a CUDA GPU: every GPU backend against the float32 reference, and whole models under the rules.

Products are taken in bfloat16 (8 bits), so single modules agree to about 2^-8 of their norm.
"""

from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf_factory import k_quant_config, tiny_config, write_tiny_k2

from hybrid_k2 import Engine, SamplingParams
from hybrid_k2.backends import registry
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.stored import StoredTensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

RULES = ("1gpu-24gb", "1gpu-48gb", "1gpu-96gb")
WRITABLE = [name for name, quant in FORMATS.items() if quant.encode is not None]
SHAPES = {"weight": (512, 256), "gate_proj": (512, 256), "up_proj": (512, 256)}


def stored(name: str, quant: str) -> StoredTensor:
    shape = SHAPES.get(name, (256, 512))
    weight = np.random.default_rng(len(name)).standard_normal(shape, np.float32) * 0.05
    return StoredTensor(name, FORMATS[quant], shape, FORMATS[quant].quantise(weight).reshape(-1))


@pytest.mark.parametrize("weights", ["stored", "bfloat16"])
@pytest.mark.parametrize("quant", WRITABLE)
@pytest.mark.parametrize(
    ("name", "module_class", "keys"),
    [
        ("linear_gpu", "Linear", ["weight"]),
        ("mlp_gpu", "MLP", ["gate_proj", "up_proj", "down_proj"]),
    ],
)
@pytest.mark.parametrize("num_tokens", [1, 33])
def test_a_gpu_module_computes_what_the_reference_computes(
    name, module_class, keys, quant, weights, num_tokens
):
    tensors = {key: stored(key, quant) for key in keys}
    context = SimpleNamespace()
    x = torch.randn(num_tokens, 256, generator=torch.Generator().manual_seed(0))
    y = registry.create(name, module_class, tensors, context, {"weights": weights})(x)
    expected = registry.create("reference", module_class, tensors, context)(x)
    assert y.device.type == "cuda" and y.dtype == torch.float32
    assert (y.cpu() - expected).norm() <= 2**-7 * expected.norm()


@pytest.mark.parametrize("quant", list(FORMATS))
def test_a_format_decodes_on_the_gpu_to_the_same_bits(quant):
    form = FORMATS[quant]
    blocks = np.random.default_rng(1).integers(0, 256, (64, form.block_bytes), np.uint8)
    for offset in form.half_offsets:
        blocks[:, offset : offset + 2] = np.array([0.01], "<f2").view(np.uint8)
    if not form.half_offsets:
        blocks &= 0x3F  # finite floats
    data = torch.from_numpy(blocks)
    assert torch.equal(form.dequantise(data.cuda()).cpu(), form.dequantise(data))


@pytest.mark.parametrize(
    ("rules", "kv_dtype"), [*((name, "") for name in RULES), (RULES[0], "int8")]
)
def test_a_model_on_the_gpu_predicts_what_it_predicts_on_the_cpu(rules, kv_dtype, tmp_path):
    config = k_quant_config(n_routed_experts=64, num_experts_per_tok=8, routed_scaling_factor=1.0)
    quants = {"default": "Q8_0", "experts": "Q4_K"}
    path = write_tiny_k2(tmp_path / "k2.gguf", config, quants=quants).path
    if kv_dtype:
        shipped = (resources.files("hybrid_k2.optimize_rules") / f"{rules}.yaml").read_text()
        rules = tmp_path / "rules.yaml"
        rules.write_text(shipped.replace("kv_dtype: bfloat16", f"kv_dtype: {kv_dtype}"))
    token_ids = np.random.default_rng(2).integers(0, config.vocab_size, 300).tolist()
    with Engine.open(path, rules="cpu", ids_only=True) as engine:
        expected = engine.logits(token_ids)
    with Engine.open(path, rules=rules, ids_only=True) as engine:
        devices = {entry.kwargs.get("device", "cpu") for entry in engine.plan.entries}
        logits = engine.logits(token_ids)
        answer = list(engine.generate(token_ids[:20], SamplingParams(temperature=0, max_tokens=8)))
    assert "cuda:0" in devices and len(answer) == 8
    error = np.abs(logits - expected).mean() / expected.std()
    assert error < 0.05
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("layout", ["split3d", "kv_b"])
def test_float32_attention_on_the_gpu_is_that_of_the_cpu(layout, tmp_path):
    path = write_tiny_k2(tmp_path / "k2.gguf", tiny_config(), layout=layout).path
    rules = tmp_path / "attention.yaml"
    rules.write_text(
        "rules:\n"
        "  - match: {class: Attention}\n"
        "    replace: {backend: attention, kwargs: {device: cuda, kv_dtype: float32}}\n"
    )
    token_ids = list(range(100))
    with Engine.open(path, rules="cpu", ids_only=True) as engine:
        expected = engine.logits(token_ids)
    with Engine.open(path, rules=rules, ids_only=True) as engine:
        logits = engine.logits(token_ids)
    assert np.abs(logits - expected).max() <= 2e-3 * expected.std()

"""The benchmarks' own promises at sizes that take a second: valid files, fair and complete rows."""

import csv
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_factory import k_quant_config
from make_wide_gguf import wide_config, write

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import K2Config


@pytest.fixture
def small() -> K2Config:
    """A K2 that K quants fit."""
    return k_quant_config()


@pytest.mark.parametrize("expert_quant", ["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
def test_a_random_file_is_valid_and_its_weights_have_the_spread_of_a_models(
    expert_quant: str, small: K2Config, tmp_path: Path
) -> None:
    path = tmp_path / "random.gguf"
    write(path, small, expert_quant, "Q8_0")
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.n_routed_experts == small.n_routed_experts
    for tensor in gguf.GGUFReader(path).tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        assert np.isfinite(weights).all(), tensor.name
        if "norm" not in tensor.name and "exp_probs" not in tensor.name and weights.size > 20_000:
            expected = 1 if tensor.name == "token_embd.weight" else weights.shape[-1] ** -0.5
            # A float16 scale of this size is off by a per cent at most, the sample by another.
            assert weights.std() == pytest.approx(expected, rel=0.05), tensor.name
            # Random codes of Q4_0 are -8 to 7, so their mean is -0.5 where the spread is 4.6.
            assert abs(weights.mean()) < 0.12 * expected, tensor.name
    experts = checkpoint.tensors["model.layers.1.mlp.experts.up_proj.weight"]
    assert experts.quant.name == expert_quant


def test_the_wide_model_has_the_shapes_of_kimi_k2(k2_data: Path) -> None:
    real = K2Config.from_hf(json.loads((k2_data / "config.json").read_text(encoding="utf-8")))
    wide = wide_config(num_moe_layers=1, num_experts=384)
    different = {name for name in K2Config.__slots__ if getattr(real, name) != getattr(wide, name)}
    assert different == {"vocab_size", "num_hidden_layers", "eos_token_ids", "name"}


def test_a_comparison_gives_both_engines_the_same_tokens_and_a_complete_row(
    small: K2Config, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")
    import decode_vs_llamacpp

    path = tmp_path / "random.gguf"
    write(path, small, "Q4_K", "Q8_0")
    row = decode_vs_llamacpp.compare(path, num_tokens=16, rounds=2, num_threads=1)
    assert row["top1_agreement"] >= 0.75  # the same tokens went in, or it would be near 0
    assert row["hybrid_k2_tok_s"] > 0 and row["llama_cpp_tok_s"] > 0
    for _ in range(2):
        file = decode_vs_llamacpp.add_row(row, tmp_path)
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert len(rows) == 2 and rows[0]["ratio"] == str(row["ratio"])

"""open_checkpoint: every layout, split and directory form, with the weights other programs see."""

import json
import logging
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_factory import LAYOUTS, TinyModel, hf_config, k_quant_config, tiny_config, write_tiny_k2

from hybrid_k2.checkpoint import Checkpoint, open_checkpoint
from hybrid_k2.checkpoint.gguf_names import to_canonical, to_gguf
from hybrid_k2.config import YarnConfig
from hybrid_k2.errors import ModelFileError


def stored_weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every tensor of the modules in float32, experts one by one, kv_b put together."""
    config, weights = checkpoint.config, {}
    for module in checkpoint.modules():
        arrays = {key: tensor.dequantise().numpy() for key, tensor in module.tensors.items()}
        if module.module_class == "Experts":
            for expert_id in range(config.n_routed_experts):
                for key, stack in arrays.items():
                    weights[f"{module.name}.{expert_id}.{key}.weight"] = stack[expert_id]
        elif "k_b_proj" in arrays:
            both = [arrays["k_b_proj"].swapaxes(1, 2), arrays["v_b_proj"]]
            name = f"{module.name}.kv_b_proj.weight"
            weights[name] = np.concatenate(both, axis=1).reshape(-1, config.kv_lora_rank)
        else:
            for key, array in arrays.items():
                suffix = ".weight" if key.endswith("_proj") else ""
                weights[f"{module.name}.{key}{suffix}"] = array
    return weights


def assert_same_weights(checkpoint: Checkpoint, model: TinyModel) -> None:
    ours = stored_weights(checkpoint)
    assert ours.keys() == model.weights.keys()
    for name, values in model.weights.items():
        assert np.array_equal(ours[name], values), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("q_lora_rank", [None, 64])
def test_every_layout_holds_the_same_model(
    tmp_path: Path, layout: str, q_lora_rank: int | None
) -> None:
    config = tiny_config(q_lora_rank=q_lora_rank)
    model = write_tiny_k2(tmp_path / "k2.gguf", config, layout=layout)
    checkpoint = open_checkpoint(model.path)
    assert checkpoint.config == config
    assert_same_weights(checkpoint, model)


def test_types_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    quants = {
        "experts": "Q4_K",
        "ffn_down_exps": "Q6_K",
        "blk.1.ffn_down_exps": "Q5_K",
        "attention": "Q8_0",
        "attn_k_b": "Q4_K",  # falls back: its rows are shorter than a block
        "token_embd": "BF16",
        "default": "F16",
    }
    model = write_tiny_k2(tmp_path / "k2.gguf", k_quant_config(), quants=quants)
    checkpoint = open_checkpoint(model.path)
    types = {name: tensor.quant.name for name, tensor in checkpoint.tensors.items()}
    assert types["model.layers.1.mlp.experts.down_proj.weight"] == "Q5_K"
    assert types["model.layers.2.mlp.experts.down_proj.weight"] == "Q6_K"
    assert types["model.layers.2.self_attn.k_b_proj.weight"] == "Q5_0"
    assert types["model.layers.2.mlp.gate.weight"] == "F32"
    assert_same_weights(checkpoint, model)


@pytest.mark.parametrize("empty_first_part", [False, True])
def test_any_part_of_a_split_set_opens_all_of_it(tmp_path: Path, empty_first_part: bool) -> None:
    model = write_tiny_k2(
        tmp_path / "k2.gguf", split_max_tensors=20, empty_first_part=empty_first_part
    )
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2 and model.path == parts[0]
    for path in (parts[0], parts[-1], tmp_path):
        checkpoint = open_checkpoint(path)
        assert checkpoint.files == tuple(parts)
        assert checkpoint.config == model.config
        assert_same_weights(checkpoint, model)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_tiny_k2(tmp_path / "k2.gguf", split_max_tensors=20)
    parts = sorted(tmp_path.iterdir())
    parts[1].unlink()
    for path in (parts[0], tmp_path):
        with pytest.raises(ModelFileError, match=rf"1 of {len(parts)} parts .*{parts[1].name}"):
            open_checkpoint(path)


def test_parts_of_two_sets_do_not_mix(tmp_path: Path) -> None:
    write_tiny_k2(tmp_path / "k2.gguf", split_max_tensors=20)
    first, second, *_ = sorted(tmp_path.iterdir())
    shutil.copy(first, second)
    with pytest.raises(ModelFileError, match=f"{second.name}.*part 1 of"):
        open_checkpoint(first)


def test_a_renamed_part_says_what_it_was(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf", split_max_tensors=20)
    renamed = model.path.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"model\.gguf is part 1 of"):
        open_checkpoint(renamed)


def test_a_directory_with_one_model_is_that_model(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    (tmp_path / "mmproj-k2.gguf").write_bytes(b"a vision tower")
    (tmp_path / "README.md").write_text("no model")
    assert open_checkpoint(tmp_path).files == (model.path,)


def test_a_directory_with_two_models_lists_them(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        write_tiny_k2(tmp_path / name)
    with pytest.raises(ModelFileError, match=r"2 models.*one\.gguf, two\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("Q4_K_M/k2.gguf", "look in Q4_K_M"),
        ("model-00001-of-00062.safetensors", "safetensors"),
        ("notes.txt", r"no \.gguf"),
    ],
)
def test_a_directory_without_a_model_says_what_it_holds(
    tmp_path: Path, inside: str, said: str
) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).write_bytes(b"x")
    with pytest.raises(ModelFileError, match=said):
        open_checkpoint(tmp_path)


def write_hf_directory(directory: Path, model: TinyModel, **changes: object) -> Path:
    directory.mkdir()
    values = hf_config(model.config) | changes
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "generation_config.json").write_text('{"eos_token_id": 7}')
    return directory


def test_a_hugging_face_directory_decides_on_betas(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    yarn = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 128}
    hf = write_hf_directory(
        tmp_path / "hf", model, rope_scaling=yarn | {"beta_fast": 32.0, "beta_slow": 1.0}
    )
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(model.path, model_path=hf)
    assert checkpoint.config.rope_scaling == YarnConfig(32.0, 128, 32.0, 1.0)
    assert checkpoint.config.eos_token_ids == (7,)
    assert checkpoint.config.name == "Tiny K2"
    assert "rope_scaling" in caplog.text


def test_a_config_json_of_another_model_contradicts_the_tensors(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    hf = write_hf_directory(tmp_path / "hf", model, moe_intermediate_size=64)
    with pytest.raises(ModelFileError, match=r"ffn_gate_exps.*\(8, 32, 64\).*\(8, 64, 64\)"):
        open_checkpoint(model.path, model_path=hf)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"n_group": 4}'])
def test_a_bad_config_json_is_named(tmp_path: Path, text: str) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        open_checkpoint(model.path, model_path=tmp_path / "hf")


def test_a_directory_that_is_no_hugging_face_directory_is_named(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    (tmp_path / "empty").mkdir()
    for bad in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ModelFileError, match=bad.name):
            open_checkpoint(model.path, model_path=bad)


def test_the_tokenizer_is_looked_for_where_the_file_has_none(tmp_path: Path) -> None:
    model = write_tiny_k2(tmp_path / "k2.gguf")
    assert open_checkpoint(model.path).tokenizer_dir is None
    hf = write_hf_directory(tmp_path / "hf", model)
    (hf / "tiktoken.model").write_text("")
    assert open_checkpoint(model.path, model_path=hf).tokenizer_dir == hf
    (tmp_path / "tiktoken.model").write_text("")
    checkpoint = open_checkpoint(model.path)
    assert checkpoint.tokenizer_dir == tmp_path and not checkpoint.has_tokenizer


def test_names_are_the_gguf_packages(tmp_path: Path) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 3)
    for layout in LAYOUTS:
        model = write_tiny_k2(tmp_path / f"{layout}.gguf", layout=layout)
        for canonical in open_checkpoint(model.path).tensors:
            spelt = canonical.replace("correction_bias", "correction.bias")  # as the converter does
            theirs = names.get_name(spelt, try_suffixes=(".weight", ".bias"))
            assert to_gguf(canonical) == theirs
            assert to_canonical(theirs) == canonical
    for other in ("blk.01.attn_norm.weight", "blk.x.attn_norm.weight", "rope_freqs.weight"):
        assert to_canonical(other) is None


def test_modules_come_in_the_order_of_a_token(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_k2(tmp_path / "k2.gguf").path)
    modules = checkpoint.modules()
    names = [module.name for module in modules]
    assert len(set(names)) == len(names)
    assert (names[0], names[-2], names[-1]) == ("model.embed_tokens", "model.norm", "lm_head")
    layer = [module for module in modules if module.layer_idx == 1]
    assert [(m.name.removeprefix("model.layers.1."), m.module_class) for m in layer] == [
        ("input_layernorm", "Norm"),
        ("self_attn.q_a_proj", "Linear"),
        ("self_attn.q_a_layernorm", "Norm"),
        ("self_attn.q_b_proj", "Linear"),
        ("self_attn.kv_a_proj_with_mqa", "Linear"),
        ("self_attn.kv_a_layernorm", "Norm"),
        ("self_attn", "Attention"),
        ("self_attn.o_proj", "Linear"),
        ("post_attention_layernorm", "Norm"),
        ("mlp.gate", "Router"),
        ("mlp.experts", "Experts"),
        ("mlp.shared_experts", "MLP"),
    ]
    assert "model.layers.0.mlp" in names and "model.layers.0.mlp.gate" not in names
    assert checkpoint.num_bytes == sum(module.num_bytes for module in modules)


def test_bytes_per_token_count_a_row_and_the_chosen_experts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_k2(tmp_path / "k2.gguf", quants="Q8_0").path)
    config = checkpoint.config
    per_class = {m.module_class: m.bytes_per_token(config) for m in checkpoint.modules()}
    row = 34 * config.hidden_size // 32
    assert per_class["Embedding"] == row
    assert per_class["Experts"] == 2 * 3 * config.moe_intermediate_size * row
    assert per_class["Linear"] == config.vocab_size * row  # the last one, the head


@pytest.mark.slow
def test_the_float32_weights_load_into_transformers(tmp_path: Path) -> None:
    import torch

    model = write_tiny_k2(tmp_path / "k2.gguf", quants="Q8_0")
    with torch.no_grad():
        logits = model.transformers_model()(torch.arange(64)[None]).logits
    assert 0.5 < logits.std() < 2


def test_tensors_without_a_place_are_listed(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.3.attn_norm.weight", np.ones(64, np.float32))
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))

    model = write_tiny_k2(tmp_path / "k2.gguf", edit=add)
    checkpoint = open_checkpoint(model.path)
    assert checkpoint.unused == ("rope_freqs.weight", "blk.3.attn_norm.weight")
    assert not any(re.search(r"layers\.3|rope", name) for name in checkpoint.tensors)


def test_close_lets_the_tensors_go(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_k2(tmp_path / "k2.gguf").path)
    checkpoint.close()
    assert not checkpoint.tensors and not checkpoint.modules() and not checkpoint.metadata

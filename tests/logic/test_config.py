"""K2's config from config.json and GGUF keys: Moonshot's own file, published vectors, errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_factory import hf_config, tiny_config

from hybrid_k2.config import (
    K2Config,
    RuntimeConfig,
    YarnConfig,
    state_dir,
    wants_colour,
)
from hybrid_k2.errors import BadInputError, ModelFileError

# reference values of the K2 family's softmax scale, by YaRN factor
SOFTMAX_SCALES = {32.0: 0.13086079996295005, 64.0: 0.14467962580268923}

GGUF_KEYS = {
    "general.architecture": "deepseek2",
    "general.name": "Kimi K2 Instruct",
    "deepseek2.block_count": 61,
    "deepseek2.context_length": 131072,
    "deepseek2.embedding_length": 7168,
    "deepseek2.feed_forward_length": 18432,
    "deepseek2.attention.head_count": 64,
    "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.key_length": 576,
    "deepseek2.attention.value_length": 512,
    "deepseek2.attention.key_length_mla": 192,
    "deepseek2.attention.value_length_mla": 128,
    "deepseek2.attention.q_lora_rank": 1536,
    "deepseek2.attention.kv_lora_rank": 512,
    "deepseek2.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    "deepseek2.rope.freq_base": 50000.0,
    "deepseek2.rope.dimension_count": 64,
    "deepseek2.rope.scaling.type": "yarn",
    "deepseek2.rope.scaling.factor": 32.0,
    "deepseek2.rope.scaling.original_context_length": 4096,
    "deepseek2.rope.scaling.yarn_log_multiplier": float(np.float32(0.1)),
    "deepseek2.leading_dense_block_count": 1,
    "deepseek2.expert_count": 384,
    "deepseek2.expert_used_count": 8,
    "deepseek2.expert_shared_count": 1,
    "deepseek2.expert_feed_forward_length": 2048,
    "deepseek2.expert_weights_scale": float(np.float32(2.827)),
    "deepseek2.expert_weights_norm": True,
    "deepseek2.expert_gating_func": 2,
    "deepseek2.vocab_size": 163840,
    "tokenizer.ggml.eos_token_id": 163585,
    "tokenizer.ggml.eot_token_id": 163586,
}


@pytest.fixture
def k2_json(k2_data: Path) -> dict:
    return json.loads((k2_data / "config.json").read_text())


def test_moonshots_config_reads_as_published(k2_json: dict, k2_data: Path) -> None:
    generation = json.loads((k2_data / "generation_config.json").read_text())
    config = K2Config.from_hf(k2_json, generation)
    assert config.rope_scaling == YarnConfig(32.0, 4096, 1.0, 1.0, 1.0, 1.0)
    assert (config.num_hidden_layers, config.num_moe_layers) == (61, 60)
    assert (config.qk_head_dim, config.latent_dim) == (192, 576)
    assert config.eos_token_ids == (163586, 163585)
    assert config.softmax_scale == pytest.approx(SOFTMAX_SCALES[32.0], rel=1e-15)


def test_gguf_keys_and_config_json_say_the_same(k2_json: dict) -> None:
    from_gguf = K2Config.from_gguf(GGUF_KEYS)
    from_hf = K2Config.from_hf(k2_json, {"eos_token_id": 163586}, name="Kimi K2 Instruct")
    assert from_gguf == from_hf


@pytest.mark.parametrize(("factor", "scale"), SOFTMAX_SCALES.items())
def test_the_softmax_scale_is_the_published_one(factor: float, scale: float) -> None:
    keys = GGUF_KEYS | {"deepseek2.rope.scaling.factor": factor}
    assert K2Config.from_gguf(keys).softmax_scale == pytest.approx(scale, rel=1e-15)


def test_a_model_without_yarn_scales_by_the_head_only() -> None:
    config = tiny_config(rope_scaling=None)
    assert config.softmax_scale == config.qk_head_dim**-0.5


@pytest.mark.parametrize("yarn", [None, YarnConfig(64.0, 128, 32.0, 1.0)])
@pytest.mark.parametrize("q_lora_rank", [None, 64])
def test_a_config_survives_config_json(yarn: YarnConfig | None, q_lora_rank: int | None) -> None:
    config = tiny_config(rope_scaling=yarn, q_lora_rank=q_lora_rank, eos_token_ids=(1, 2))
    values = json.loads(json.dumps(hf_config(config)))
    assert K2Config.from_hf(values, name=config.name) == config


def test_transformers_5_rope_parameters_are_read() -> None:
    values = hf_config(tiny_config())
    rope = values.pop("rope_scaling") | {"rope_theta": values.pop("rope_theta")}
    rope["rope_type"] = rope.pop("type")
    values["rope_parameters"], values["rope_scaling"] = rope, None
    assert K2Config.from_hf(values, name="Tiny K2") == tiny_config()


def test_a_text_config_wrapper_is_unwrapped() -> None:
    values = {"model_type": "kimi_k25", "text_config": hf_config(tiny_config())}
    assert K2Config.from_hf(values, name="Tiny K2") == tiny_config()


def test_betas_that_a_file_lacks_are_k2s_own() -> None:
    assert K2Config.from_gguf(GGUF_KEYS).rope_scaling == YarnConfig(32.0, 4096, 1.0, 1.0)
    keys = GGUF_KEYS | {
        "deepseek2.rope.scaling.yarn_beta_fast": 32.0,
        "deepseek2.rope.scaling.yarn_beta_slow": 2.0,
    }
    assert K2Config.from_gguf(keys).rope_scaling == YarnConfig(32.0, 4096, 32.0, 2.0)


def test_files_older_than_the_mla_keys_are_read() -> None:
    old = {key: value for key, value in GGUF_KEYS.items() if not key.endswith("_mla")}
    old["deepseek2.attention.key_length"] = 192
    old["deepseek2.attention.value_length"] = 128
    old["deepseek2.attention.head_count_kv"] = 64
    assert K2Config.from_gguf(old) == K2Config.from_gguf(GGUF_KEYS)


def test_the_embedding_gives_a_vocabulary_that_no_key_gives() -> None:
    keys = {key: value for key, value in GGUF_KEYS.items() if "vocab_size" not in key}
    config = K2Config.from_gguf(keys, {"token_embd.weight": (163840, 7168)})
    assert config.vocab_size == 163840


def test_a_per_layer_expert_width_is_read_if_all_layers_agree() -> None:
    key = "deepseek2.expert_feed_forward_length"
    assert K2Config.from_gguf(GGUF_KEYS | {key: np.full(61, 2048)}) == K2Config.from_gguf(GGUF_KEYS)
    with pytest.raises(ModelFileError, match=key):
        K2Config.from_gguf(GGUF_KEYS | {key: np.arange(61)})


def test_missing_gating_is_sigmoid_only_with_correction_biases() -> None:
    keys = {key: value for key, value in GGUF_KEYS.items() if "gating" not in key}
    assert K2Config.from_gguf(keys, {"blk.1.exp_probs_b.bias": (384,)})
    with pytest.raises(ModelFileError, match="expert_gating_func"):
        K2Config.from_gguf(keys, {"blk.1.ffn_gate_inp.weight": (384, 7168)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepseek2.block_count", 0),
        ("deepseek2.block_count", -1),
        ("deepseek2.block_count", 1 << 40),
        ("deepseek2.block_count", "61"),
        ("deepseek2.block_count", True),
        ("deepseek2.block_count", None),
        ("deepseek2.embedding_length", 71.5),
        ("deepseek2.attention.layer_norm_rms_epsilon", float("nan")),
        ("deepseek2.attention.layer_norm_rms_epsilon", -1e-6),
        ("deepseek2.rope.freq_base", float("inf")),
        ("deepseek2.rope.scaling.type", "linear"),
        ("deepseek2.rope.scaling.type", np.zeros(3)),
        ("deepseek2.rope.scaling.yarn_beta_fast", 0.0),
        ("deepseek2.expert_gating_func", 1),
        ("deepseek2.expert_gating_func", np.zeros(3)),
        ("deepseek2.expert_group_count", 8),
        ("deepseek2.expert_weights_norm", 1),
        ("general.name", np.zeros(3)),
    ],
)
def test_a_bad_gguf_key_is_named(key: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=key):
        K2Config.from_gguf(GGUF_KEYS | {key: value})


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("deepseek2.expert_used_count", 385, "num_experts_per_tok"),
        ("deepseek2.leading_dense_block_count", 62, "first_k_dense_replace"),
        ("deepseek2.rope.dimension_count", 192, "key_length"),
        ("deepseek2.rope.dimension_count", 63, "qk_rope_head_dim"),
        ("deepseek2.rope.scaling.factor", 0.5, "rope_scaling.factor"),
        ("tokenizer.ggml.eot_token_id", 163840, "eos_token_id"),
    ],
)
def test_keys_that_contradict_each_other_are_named(key: str, value: object, field: str) -> None:
    with pytest.raises(ModelFileError, match=f"{field}.* {value}"):
        K2Config.from_gguf(GGUF_KEYS | {key: value})


@pytest.mark.parametrize("architecture", ["llama", "deepseek", None, 3, np.zeros(2)])
def test_another_architecture_is_named(architecture: object) -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture"):
        K2Config.from_gguf(GGUF_KEYS | {"general.architecture": architecture})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_group", 8),
        ("topk_group", 4),
        ("moe_layer_freq", 2),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("vocab_size", "many"),
        ("hidden_size", 10**400),
        ("rms_norm_eps", 10**400),
        ("rope_theta", None),
        ("q_lora_rank", 0),
        ("norm_topk_prob", "yes"),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("rope_scaling", [1]),
        ("text_config", [1]),
        ("eos_token_id", "end"),
        ("eos_token_id", 10**9),
    ],
)
def test_a_bad_config_json_key_is_named(key: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=key):
        K2Config.from_hf(hf_config(tiny_config()) | {key: value})


def test_every_missing_key_is_named() -> None:
    values = hf_config(tiny_config())
    optional = {"tie_word_embeddings", "rope_scaling", "q_lora_rank"}
    for key in set(K2Config.__slots__) & set(values) - optional:
        without = {name: value for name, value in values.items() if name != key}
        with pytest.raises(ModelFileError, match=key):
            K2Config.from_hf(without)


def test_fields_are_checked_against_each_other_when_replaced() -> None:
    with pytest.raises(ModelFileError, match="num_experts_per_tok"):
        replace(tiny_config(), num_experts_per_tok=9)


def test_the_environment_sets_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_K2_THREADS", "3")
    monkeypatch.setenv("HYBRID_K2_ISA", "avx2")
    assert RuntimeConfig.from_env() == RuntimeConfig(num_threads=3, tier="avx2")
    assert RuntimeConfig.from_env(num_threads=5, context=None).num_threads == 5
    assert RuntimeConfig.from_env().resolved_threads == 3


def test_a_bad_runtime_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_K2_THREADS", "many")
    with pytest.raises(BadInputError, match="HYBRID_K2_THREADS='many'"):
        RuntimeConfig.from_env()
    monkeypatch.delenv("HYBRID_K2_THREADS")
    for bad in (
        {"context": -1},
        {"prefill_chunk": -1},
        {"vram_bytes": -1},
        {"context": "8k"},
        {"colour": 1},
    ):
        with pytest.raises(BadInputError, match=next(iter(bad))):
            RuntimeConfig.from_env(**bad)


def test_state_lies_where_the_xdg_rules_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_dir() == Path("/somewhere/hybrid-k2")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_dir() == Path.home() / ".local" / "state" / "hybrid-k2"


def test_no_color_and_a_dumb_terminal_turn_colour_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour()

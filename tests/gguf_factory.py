"""Writes tiny Kimi K2 models as GGUF files, with the weights in float32 for other programs to load.

The files are what llama.cpp's converter would make of them: any layout of kv_b, any type per
tensor, split or whole, with or without a tokenizer. Weights are seeded noise of such a size that
logits have a standard deviation near 1 and routing varies. The gguf package writes and dequantises,
so nothing of hybrid_k2's own decoding is in the float32 weights (its Q4_K and Q6_K encoders make
the bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata, tensor_shapes
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.quant import QuantFormat, by_name

LAYOUTS = ("split3d", "split2d", "kv_b", "both")
# What a quantiser falls back to where a row is no multiple of 256, as llama.cpp's does.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ALWAYS_F32 = ("_norm", "ffn_gate_inp", "exp_probs_b")
GROUPS = {
    "experts": ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    "shared": ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
    "dense": ("ffn_gate", "ffn_up", "ffn_down"),
    "attention": (
        *("attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa"),
        *("attn_k_b", "attn_v_b", "attn_kv_b", "attn_output"),
    ),
}


@dataclass(frozen=True)
class TinyModel:
    """A written model. path: the (first) file; weights: Hugging Face's names, one entry an expert,
    float32, exactly what the file's bytes stand for."""

    path: Path
    config: K2Config
    weights: dict[str, np.ndarray]

    def transformers_model(self) -> Any:
        """transformers' DeepseekV3ForCausalLM in float32 with these very weights."""
        return transformers_model(self.config, self.weights)


def tiny_config(**changes: Any) -> K2Config:
    """A K2 of a few hundred thousand weights; widths are multiples of 32. `changes` by field."""
    config = K2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        routed_scaling_factor=2.827,
        norm_topk_prob=True,
        num_attention_heads=4,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        max_position_embeddings=4096,
        rope_theta=50000.0,
        rope_scaling=YarnConfig(factor=32.0, original_max_position_embeddings=128),
        rms_norm_eps=1e-6,
        name="Tiny K2",
    )
    return replace(config, **changes)


def k_quant_config(**changes: Any) -> K2Config:
    """A tiny K2 whose rows are multiples of 256, so that K quants fit all but k_b."""
    widths = dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "q_lora_rank",
            "kv_lora_rank",
        ),
        256,
    )
    heads = {"num_attention_heads": 4, "qk_nope_head_dim": 32, "v_head_dim": 64}
    return tiny_config(**(widths | heads | changes))


def write_tiny_k2(
    path: Path,
    config: K2Config | None = None,
    *,
    seed: int = 0,
    quants: str | Mapping[str, str] = "F32",
    layout: str = "split3d",
    tokenizer: Mapping[str, Any] | None = None,
    split_max_tensors: int = 0,
    empty_first_part: bool = False,
    edit: Callable[[gguf.GGUFWriter], None] | None = None,
) -> TinyModel:
    """Writes a model to `path` (`x.gguf`; parts become `x-00001-of-0000N.gguf`).

    quants: one type for all matrices, or by tensor ("blk.1.ffn_down_exps"), by role
    ("ffn_down_exps", "token_embd"), by group (GROUPS) or "default"; the most particular wins.
    Norms, router and bias are F32 always. tokenizer: the `tokenizer.*` keys, as
    text_factory.gguf_metadata makes them; the vocabulary's size follows it. edit: last changes to
    the writer before it writes.
    """
    config = config or tiny_config()
    if tokenizer is not None:
        config = replace(config, vocab_size=len(tokenizer["tokenizer.ggml.tokens"]))
    if isinstance(quants, str):
        quants = {"default": quants}
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(
        path,
        arch="deepseek2",
        split_max_tensors=split_max_tensors,
        small_first_shard=empty_first_part,
    )
    add_k2_metadata(writer, config, latent_heads=layout in ("split3d", "both"))
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    stored: dict[str, np.ndarray] = {}
    for name, values in _random_tensors(config, rng):
        for part_name, part in _lay_out(name, values, config, layout):
            quant = _quant_of(to_gguf(part_name), quants, columns=part.shape[-1])
            stored[part_name] = _add_tensor(writer, to_gguf(part_name), part, quant, rng)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = writer.format_shard_names(path)[0]
    return TinyModel(first, config, hf_weights(config, stored))


def hf_config(config: K2Config) -> dict[str, Any]:
    """The config.json that Moonshot would ship with such a model."""
    yarn = config.rope_scaling
    values = {field: getattr(config, field) for field in K2Config.__slots__}
    del values["eos_token_ids"], values["name"]
    values["rope_scaling"] = yarn and {
        "type": "yarn",
        **{field: getattr(yarn, field) for field in YarnConfig.__slots__},
    }
    return values | {
        "model_type": "kimi_k2",
        "architectures": ["DeepseekV3ForCausalLM"],
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "eos_token_id": list(config.eos_token_ids) or None,
        "num_key_value_heads": config.num_attention_heads,
    }


def transformers_model(config: K2Config, weights: Mapping[str, np.ndarray]) -> Any:
    """transformers' own DeepSeek-V3 over `weights` (Hugging Face's names), float32, evaluation."""
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    values = hf_config(config)
    yarn = values.pop("rope_scaling")
    theta = values.pop("rope_theta")
    rope = {"rope_type": "default"} if yarn is None else yarn | {"rope_type": yarn["type"]}
    model_config = DeepseekV3Config(
        **{
            key: value for key, value in values.items() if key not in ("model_type", "eos_token_id")
        },
        rope_parameters=rope | {"rope_theta": theta},
        num_mtp_layers=0,
        attn_implementation="eager",
    )
    state = {name: torch.from_numpy(np.array(values)) for name, values in weights.items()}
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack(
                [state.pop(f"{prefix}.{e}.{key}.weight") for e in range(config.n_routed_experts)]
            )
            for key in ("gate_proj", "up_proj", "down_proj")
        )
        state[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[f"{prefix}.down_proj"] = down
    model = DeepseekV3ForCausalLM(model_config).float().eval()
    model.load_state_dict(state)
    return model


def _random_tensors(config: K2Config, rng: np.random.Generator):
    """Yields (canonical name, float32 values) with experts stacked and kv_b whole."""
    for name, shape in tensor_shapes(config):
        noise = rng.standard_normal(shape, np.float32)
        if name.endswith("norm.weight"):
            yield name, 1 + 0.1 * noise
        elif name.endswith("e_score_correction_bias"):
            yield name, 0.05 * noise
        elif name.endswith("embed_tokens.weight"):
            yield name, noise
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            # As GPT-2 starts: what the layers add stays small beside what they add it to, so that
            # rounding in one layer is not magnified by the next.
            layers = 2 * config.num_hidden_layers
            yield name, noise * np.float32((layers * shape[-1]) ** -0.5)
        else:  # keeps the size of what it multiplies
            yield name, noise * np.float32(shape[-1] ** -0.5)


def _lay_out(name: str, values: np.ndarray, config: K2Config, layout: str):
    """Yields the tensor, or for kv_b the tensors that the layout stores it as."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, values
        return
    assert layout in LAYOUTS, layout
    if layout in ("kv_b", "both"):
        yield name, values
    if layout != "kv_b":
        heads = values.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        k_b = heads[:, : config.qk_nope_head_dim].transpose(0, 2, 1)  # [h, rank, nope]
        v_b = heads[:, config.qk_nope_head_dim :]  # [h, v, rank]
        for key, part in (("k_b_proj", k_b), ("v_b_proj", v_b)):
            part = np.ascontiguousarray(part)
            part = part.reshape(-1, part.shape[-1]) if layout == "split2d" else part
            yield name.replace("kv_b_proj", key), part


def _quant_of(gguf_name: str, quants: Mapping[str, str], columns: int) -> QuantFormat:
    tensor = gguf_name.removesuffix(".weight")
    role = tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor
    if any(part in role for part in ALWAYS_F32):
        return by_name("F32")
    group = next((name for name, roles in GROUPS.items() if role in roles), "")
    found = next((quants[key] for key in (tensor, role, group, "default") if key in quants), "F32")
    quant = by_name(found)
    if columns % quant.block_size:
        quant = by_name(FALLBACK.get(found, "F16"))
    return quant if columns % quant.block_size == 0 else by_name("F16")


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: np.ndarray,
    quant: QuantFormat,
    rng: np.random.Generator,
) -> np.ndarray:
    """Adds the tensor in its type and returns what the stored bytes mean."""
    if quant.encode is None:
        data = _random_blocks(quant, values, rng)
    else:
        data = quant.quantise(values)
    ggml_type = gguf.GGMLQuantizationType(quant.ggml_type)
    writer.add_tensor(name, data, raw_dtype=ggml_type)
    return gguf.quants.dequantize(data, ggml_type).reshape(values.shape)


def _random_blocks(quant: QuantFormat, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random codes for a type that nobody here encodes, scaled to the spread of `values`."""
    shape = (values.size // quant.block_size, quant.block_bytes)
    blocks = rng.integers(0, 256, shape, np.uint8)

    def decode_with(*scales: float) -> np.ndarray:
        for offset, scale in zip(quant.half_offsets, scales, strict=False):
            blocks[:, offset : offset + 2] = np.array([scale], "<f2").view(np.uint8)
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(quant.ggml_type))

    # d * a - dmin * b: the dmin that takes the mean away, then the d that gives the spread.
    ratio = decode_with(1.0, 0.0).mean() / max(-decode_with(0.0, 1.0).mean(), 1e-9)
    d = values.std() / decode_with(1.0, ratio).std()
    decode_with(d, ratio * d)
    return blocks.reshape(*values.shape[:-1], -1)


def _add_tokenizer(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model(keys["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(keys["tokenizer.ggml.pre"])
    tokens = keys["tokenizer.ggml.tokens"]
    writer.add_token_list(tokens)
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    if keys.get("tokenizer.ggml.merges"):
        writer.add_token_merges(keys["tokenizer.ggml.merges"])
    if keys.get("tokenizer.chat_template"):
        writer.add_chat_template(keys["tokenizer.chat_template"])
    writer.add_bos_token_id(tokens.index("[BOS]"))
    writer.add_eos_token_id(tokens.index("[EOS]"))
    writer.add_eot_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("[PAD]"))


def hf_weights(config: K2Config, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts one by one; kv_b put together again from what k_b and v_b stand for."""
    weights: dict[str, np.ndarray] = {}
    for name, values in stored.items():
        if ".mlp.experts." in name:
            prefix, rest = name.split(".experts.")
            for expert_id, expert in enumerate(values):
                weights[f"{prefix}.experts.{expert_id}.{rest}"] = expert
        elif name.endswith(".k_b_proj.weight"):
            v_b = stored[name.replace("k_b_proj", "v_b_proj")]
            heads, rank = config.num_attention_heads, config.kv_lora_rank
            keys = values.reshape(heads, rank, -1).transpose(0, 2, 1)
            both = np.concatenate([keys, v_b.reshape(heads, -1, rank)], axis=1)
            weights[name.replace("k_b_proj", "kv_b_proj")] = both.reshape(-1, rank)
        elif not name.endswith(".v_b_proj.weight"):
            weights.setdefault(name, values)
    return weights

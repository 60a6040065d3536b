"""Writes untrained.gguf: Kimi K2's architecture with seeded random weights and a real vocabulary.

Run it from a checkout: `python -m hybrid_k2.demo_model.build_untrained [FILE]`. The same seed and
Python version give the same bytes. Knows the shapes of one small K2; the GGUF keys and tensor names
come from `checkpoint`, the vocabulary from `build_vocabulary.py`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from hybrid_k2 import demo_model
from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.demo_model.build_vocabulary import (
    CONTROL_TOKENS,
    NUM_CONTROL_IDS,
    add_tokenizer,
    train,
)

SEED = 2
VOCAB_SIZE = 2048
CONFIG = K2Config(
    name=demo_model.NAME + " (untrained)",
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=384,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    n_routed_experts=32,
    n_shared_experts=1,
    num_experts_per_tok=4,
    routed_scaling_factor=2.827,
    norm_topk_prob=True,
    num_attention_heads=4,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    max_position_embeddings=8192,
    rope_theta=50000.0,
    rope_scaling=YarnConfig(factor=32.0, original_max_position_embeddings=256),
    rms_norm_eps=1e-6,
)

# One coordinate of every embedding is this constant, and only the head reads it: it makes an answer
# end after some tens of tokens, and control tokens other than the end rare. Noise would do neither.
BIAS_COORDINATE, BIAS_INPUT = 0, 4.0
END_BIAS, CONTROL_BIAS = 0.55, -2.0


def main(file: Path) -> None:
    """Writes the model to `file`."""
    tokens = train(VOCAB_SIZE - NUM_CONTROL_IDS)
    writer = gguf.GGUFWriter(file, arch="deepseek2")
    add_k2_metadata(writer, CONFIG)
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    add_tokenizer(writer, tokens, template)
    for name, quant, values in tensors(CONFIG, first_control_id=len(tokens)):
        data = gguf.quants.quantize(values, quant)
        writer.add_tensor(to_gguf(name), data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(
    config: K2Config, first_control_id: int
) -> Iterator[tuple[str, gguf.GGMLQuantizationType, np.ndarray]]:
    """Yields (canonical name, stored type, float32 values) of every tensor, experts stacked.

    Weights are normal with variance 1 / inputs, so that activations keep their size.
    """
    f32, q8_0, q4_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_0"))
    rng = np.random.default_rng(SEED)

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5

    def ones(size: int) -> np.ndarray:
        return np.ones(size, dtype=np.float32)

    hidden, heads, experts = config.hidden_size, config.num_attention_heads, config.n_routed_experts
    width, latent, q_rank = config.moe_intermediate_size, config.kv_lora_rank, config.q_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim

    embedding = weight(config.vocab_size, hidden) * hidden**0.5
    embedding[:, BIAS_COORDINATE] = BIAS_INPUT
    head = weight(config.vocab_size, hidden)
    head[:, BIAS_COORDINATE] = 0
    for offset, name in CONTROL_TOKENS.items():
        bias = END_BIAS if name == "<|im_end|>" else CONTROL_BIAS
        head[first_control_id + offset] = 0
        head[first_control_id + offset, BIAS_COORDINATE] = bias
    yield "model.embed_tokens.weight", q8_0, embedding
    yield "model.norm.weight", f32, ones(hidden)
    yield "lm_head.weight", q8_0, head

    for layer_idx in range(config.num_hidden_layers):
        layer = f"model.layers.{layer_idx}."
        attention = layer + "self_attn."
        yield layer + "input_layernorm.weight", f32, ones(hidden)
        yield layer + "post_attention_layernorm.weight", f32, ones(hidden)
        yield attention + "q_a_proj.weight", q8_0, weight(q_rank, hidden)
        yield attention + "q_a_layernorm.weight", f32, ones(q_rank)
        yield attention + "q_b_proj.weight", q8_0, weight(heads * config.qk_head_dim, q_rank)
        yield attention + "kv_a_proj_with_mqa.weight", q8_0, weight(config.latent_dim, hidden)
        yield attention + "kv_a_layernorm.weight", f32, ones(latent)
        yield attention + "k_b_proj.weight", q8_0, weight(heads, latent, nope)
        yield attention + "v_b_proj.weight", q8_0, weight(heads, value, latent)
        yield attention + "o_proj.weight", q8_0, weight(hidden, heads * value)
        mlp = layer + "mlp."
        if layer_idx < config.first_k_dense_replace:
            yield from _mlp(mlp, q8_0, weight, config.intermediate_size, hidden)
            continue
        yield mlp + "gate.weight", f32, weight(experts, hidden)
        bias = 0.01 * rng.standard_normal(experts, dtype=np.float32)
        yield mlp + "gate.e_score_correction_bias", f32, bias
        yield from _mlp(mlp + "shared_experts.", q8_0, weight, width, hidden)
        yield mlp + "experts.gate_proj.weight", q4_0, weight(experts, width, hidden)
        yield mlp + "experts.up_proj.weight", q4_0, weight(experts, width, hidden)
        yield mlp + "experts.down_proj.weight", q4_0, weight(experts, hidden, width)


def _mlp(prefix, quant, weight, width, hidden):
    for name, shape in (
        ("gate_proj", (width, hidden)),
        ("up_proj", (width, hidden)),
        ("down_proj", (hidden, width)),
    ):
        yield f"{prefix}{name}.weight", quant, weight(*shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo_model.path())

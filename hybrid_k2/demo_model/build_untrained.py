"""Writes untrained.gguf: Kimi K2's architecture with seeded random weights and a real vocabulary.

Run it from a checkout: `python -m hybrid_k2.demo_model.build_untrained [FILE]`. The same seed and
Python version give the same bytes. Knows the shapes of one small K2; the GGUF keys and tensor names
come from `checkpoint`, the vocabulary from `build_vocabulary.py`.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

from hybrid_k2 import demo_model
from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.checkpoint.gguf_writer import add_k2_metadata, tensor_shapes
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.demo_model.build_vocabulary import (
    END_OFFSET,
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

# No layer writes this coordinate of the residual stream, every embedding holds the same constant in
# it, and the head reads it for control tokens only. So an answer ends after some tens of tokens and
# no other control token is likely; noise would do neither.
BIAS_COORDINATE, BIAS_INPUT = 0, 4.0
END_BIAS, OTHER_CONTROL_BIAS = 2.0, -4.0


def main(file: Path) -> None:
    """Writes the model to `file`."""
    tokens = train(VOCAB_SIZE - NUM_CONTROL_IDS)
    writer = gguf.GGUFWriter(file, arch="deepseek2")
    add_k2_metadata(writer, CONFIG)
    add_tokenizer(writer, tokens)
    rng = np.random.default_rng(SEED)
    for name, shape in tensor_shapes(CONFIG, latent_heads=True):
        values = random_values(rng, name, shape, first_control_id=len(tokens))
        quant = stored_type(name)
        writer.add_tensor(to_gguf(name), gguf.quants.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_type(name: str) -> gguf.GGMLQuantizationType:
    """Experts in 4 bits, norms and routers in float32 as in every K2 file, the rest in 8 bits."""
    if "norm" in name or ".mlp.gate." in name:
        return gguf.GGMLQuantizationType.F32
    is_expert = ".mlp.experts." in name
    return gguf.GGMLQuantizationType.Q4_0 if is_expert else gguf.GGMLQuantizationType.Q8_0


def random_values(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], first_control_id: int
) -> np.ndarray:
    """Noise of the size that keeps activations as large as they are, float32, and the bias
    above.
    """
    if "norm" in name:
        return np.ones(shape, np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("e_score_correction_bias"):
        return np.float32(0.01) * values
    if name == "model.embed_tokens.weight":
        values[:, BIAS_COORDINATE] = BIAS_INPUT
        return values
    values *= np.float32(shape[-1] ** -0.5)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        values[..., BIAS_COORDINATE, :] = 0
    if name == "lm_head.weight":
        values[:, BIAS_COORDINATE] = 0
        values[first_control_id:] = 0
        values[first_control_id:, BIAS_COORDINATE] = OTHER_CONTROL_BIAS
        values[first_control_id + END_OFFSET, BIAS_COORDINATE] = END_BIAS
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo_model.path())

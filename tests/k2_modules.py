"""The module list of a K2 of any size, with shapes and stored types but no weights behind them.

For tests of rules and plans: a list for the real K2 (1 T weights) takes no memory, because every
tensor's bytes are one byte seen many times.
"""

import math
from dataclasses import replace

import numpy as np

from hybrid_k2.bench.synthetic_model import K2
from hybrid_k2.checkpoint.gguf_writer import tensor_shapes
from hybrid_k2.checkpoint.modules import ModuleSpec, build_modules
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.stored import StoredTensor

REAL_K2 = replace(K2, max_position_embeddings=131072, rope_scaling=YarnConfig(32.0, 4096))

TINY_K2 = replace(
    K2,
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=256,
    num_hidden_layers=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    num_attention_heads=4,
    q_lora_rank=None,
    kv_lora_rank=256,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=64,
    max_position_embeddings=4096,
    rope_scaling=None,
)


def k2_modules(
    config: K2Config,
    dense: str = "Q8_0",
    experts: str = "Q4_K",
    experts_down: str | None = None,
    has_kv_b: bool = False,
) -> list[ModuleSpec]:
    """Modules in the model's order; `experts_down` is the type of every other down projection."""

    def quant(name: str) -> str:
        if "norm" in name or ".mlp.gate." in name:
            return "F32"
        if ".mlp.experts." not in name:
            return dense
        is_odd = int(name.split(".")[2]) % 2
        return experts_down if experts_down and is_odd and "down_proj" in name else experts

    shapes = tensor_shapes(config, latent_heads=not has_kv_b)
    return build_modules(config, {n: _tensor(n, quant(n), shape) for n, shape in shapes})


def _tensor(name: str, quant: str, shape: tuple[int, ...]) -> StoredTensor:
    stored = FORMATS[quant if shape[-1] % FORMATS[quant].block_size == 0 else "F32"]
    num_bytes = stored.num_bytes(math.prod(shape))
    return StoredTensor(name, stored, shape, np.broadcast_to(np.zeros((), np.uint8), (num_bytes,)))

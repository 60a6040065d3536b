"""The module list of a K2 of any size, with shapes and stored types but no weights behind them.

For tests of rules and plans: a list for the real K2 (1 T weights) takes no memory, because every
tensor's bytes are one byte seen many times.
"""

from collections.abc import Mapping

import numpy as np

from hybrid_k2.checkpoint.modules import ModuleSpec
from hybrid_k2.config import K2Config, YarnConfig
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.stored import StoredTensor

REAL_K2 = K2Config(
    vocab_size=163840,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    first_k_dense_replace=1,
    n_routed_experts=384,
    n_shared_experts=1,
    num_experts_per_tok=8,
    routed_scaling_factor=2.827,
    norm_topk_prob=True,
    num_attention_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    max_position_embeddings=131072,
    rope_theta=50000.0,
    rope_scaling=YarnConfig(32.0, 4096),
    rms_norm_eps=1e-6,
)

TINY_K2 = K2Config(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=256,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    routed_scaling_factor=2.827,
    norm_topk_prob=True,
    num_attention_heads=4,
    q_lora_rank=None,
    kv_lora_rank=256,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=64,
    max_position_embeddings=4096,
    rope_theta=50000.0,
    rope_scaling=None,
    rms_norm_eps=1e-6,
)


def k2_modules(
    config: K2Config,
    dense: str = "Q8_0",
    experts: str = "Q4_K",
    experts_down: str | None = None,
    has_kv_b: bool = False,
) -> list[ModuleSpec]:
    """Modules in the model's order; `experts_down` is the type of every other down projection."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    modules = [
        _module(
            "model.embed_tokens", "Embedding", None, dense, {"weight": (config.vocab_size, hidden)}
        )
    ]

    def add(
        name: str, module_class: str, quant: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        full_name = f"model.layers.{layer}.{name}"
        modules.append(_module(full_name, module_class, layer, quant, shapes))

    def mlp_shapes(width: int) -> dict[str, tuple[int, ...]]:
        return {
            "gate_proj": (width, hidden),
            "up_proj": (width, hidden),
            "down_proj": (hidden, width),
        }

    for layer in range(config.num_hidden_layers):
        add("input_layernorm", "Norm", "F32", {"weight": (hidden,)})
        query_rows = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            add("self_attn.q_proj", "Linear", dense, {"weight": (query_rows, hidden)})
        else:
            rank = config.q_lora_rank
            add("self_attn.q_a_proj", "Linear", dense, {"weight": (rank, hidden)})
            add("self_attn.q_a_layernorm", "Norm", "F32", {"weight": (rank,)})
            add("self_attn.q_b_proj", "Linear", dense, {"weight": (query_rows, rank)})
        add(
            "self_attn.kv_a_proj_with_mqa", "Linear", dense, {"weight": (config.latent_dim, hidden)}
        )
        add("self_attn.kv_a_layernorm", "Norm", "F32", {"weight": (config.kv_lora_rank,)})
        nope, value, rank = config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
        if has_kv_b:
            add("self_attn", "Attention", dense, {"kv_b_proj": (heads * (nope + value), rank)})
        else:
            shapes = {"k_b_proj": (heads, rank, nope), "v_b_proj": (heads, value, rank)}
            add("self_attn", "Attention", dense, shapes)
        add("self_attn.o_proj", "Linear", dense, {"weight": (hidden, heads * value)})
        add("post_attention_layernorm", "Norm", "F32", {"weight": (hidden,)})
        if layer < config.first_k_dense_replace:
            add("mlp", "MLP", dense, mlp_shapes(config.intermediate_size))
            continue
        count, width = config.n_routed_experts, config.moe_intermediate_size
        router = {"weight": (count, hidden), "e_score_correction_bias": (count,)}
        add("mlp.gate", "Router", "F32", router)
        add("mlp.shared_experts", "MLP", dense, mlp_shapes(width * config.n_shared_experts))
        stacked = {key: (count, *shape) for key, shape in mlp_shapes(width).items()}
        add("mlp.experts", "Experts", experts, stacked)
        if experts_down and layer % 2:
            tensors = dict(modules[-1].tensors)
            tensors["down_proj"] = _tensor("down_proj", experts_down, stacked["down_proj"])
            modules[-1] = ModuleSpec(modules[-1].name, "Experts", layer, tensors)
    modules.append(_module("model.norm", "Norm", None, "F32", {"weight": (hidden,)}))
    modules.append(
        _module("lm_head", "Linear", None, dense, {"weight": (config.vocab_size, hidden)})
    )
    return modules


def _module(
    name: str,
    module_class: str,
    layer: int | None,
    quant: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> ModuleSpec:
    tensors = {key: _tensor(f"{name}.{key}", quant, shape) for key, shape in shapes.items()}
    return ModuleSpec(name, module_class, layer, tensors)


def _tensor(name: str, quant: str, shape: tuple[int, ...]) -> StoredTensor:
    stored = FORMATS[quant if shape[-1] % FORMATS[quant].block_size == 0 else "F32"]
    num_bytes = stored.num_bytes(int(np.prod(shape, dtype=np.int64)))
    return StoredTensor(name, stored, shape, np.broadcast_to(np.zeros((), np.uint8), (num_bytes,)))

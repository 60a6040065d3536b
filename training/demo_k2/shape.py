"""The demo model's shape: Kimi K2's, with every part kept and every width made small.

384 experts of which 8 answer and one shared expert, as in K2: 32 is the narrowest expert that
4-bit blocks allow, and five layers of 384 such experts are 26 of the file's 35 MB.
"""

from __future__ import annotations

from dataclasses import replace

from hybrid_k2.config import K2Config, YarnConfig

VOCAB_SIZE = 6144
CONFIG = K2Config(
    name="hybrid-k2 demo model",
    vocab_size=VOCAB_SIZE,
    hidden_size=256,
    intermediate_size=768,
    moe_intermediate_size=32,
    num_hidden_layers=6,
    first_k_dense_replace=1,
    n_routed_experts=384,
    n_shared_experts=1,
    num_experts_per_tok=8,
    routed_scaling_factor=2.827,
    norm_topk_prob=True,
    num_attention_heads=8,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=64,
    max_position_embeddings=4096,
    rope_theta=50000.0,
    # K2.5's betas: llama.cpp reads none for this architecture and takes these.
    rope_scaling=YarnConfig(factor=4.0, original_max_position_embeddings=1024, beta_fast=32.0),
    rms_norm_eps=1e-6,
)


def dense_baseline(config: K2Config = CONFIG) -> K2Config:
    """The same model without routing, whose every MLP has as many weights as a token of `config`
    meets in a layer on average: its experts, the router, and the dense first layer.
    """
    active = config.num_experts_per_tok + config.n_shared_experts
    router_width = config.n_routed_experts / 3
    total = config.first_k_dense_replace * config.intermediate_size
    total += config.num_moe_layers * (active * config.moe_intermediate_size + router_width)
    width = round(total / config.num_hidden_layers / 32) * 32
    return replace(
        config,
        name="dense baseline",
        first_k_dense_replace=config.num_hidden_layers,
        intermediate_size=width,
    )

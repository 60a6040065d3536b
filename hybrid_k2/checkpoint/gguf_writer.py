"""The GGUF keys of a Kimi K2, as mainline llama.cpp writes them: the inverse of reading.

For the programs that write models: the demo model's build, benchmarks and tests. Knows no tensors;
the gguf package's GGUFWriter, which the caller owns, does the writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybrid_k2.config import K2Config

if TYPE_CHECKING:
    from gguf import GGUFWriter


def add_k2_metadata(writer: GGUFWriter, config: K2Config, *, latent_heads: bool = True) -> None:
    """Adds every `deepseek2.*` key and the name to a writer made with arch="deepseek2".

    latent_heads: the keys of files that carry k_b and v_b, whose attention llama.cpp runs over one
    latent head; False writes the older keys that go with kv_b.
    """
    writer.add_name(config.name)
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_attention(writer, config, latent_heads)
    _add_experts(writer, config)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    _add_yarn(writer, config)


def tensor_shapes(
    config: K2Config, *, latent_heads: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the canonical name and shape of every tensor, experts stacked, in a file's order.

    latent_heads: k_b [heads, latent, nope] and v_b [heads, value, latent] in place of kv_b.
    """
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    width, num_experts = config.moe_intermediate_size, config.n_routed_experts
    q_rows = heads * config.qk_head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer_idx in range(config.num_hidden_layers):
        layer = f"model.layers.{layer_idx}"
        attention = f"{layer}.self_attn"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        if config.q_lora_rank is None:
            yield f"{attention}.q_proj.weight", (q_rows, hidden)
        else:
            yield f"{attention}.q_a_proj.weight", (config.q_lora_rank, hidden)
            yield f"{attention}.q_a_layernorm.weight", (config.q_lora_rank,)
            yield f"{attention}.q_b_proj.weight", (q_rows, config.q_lora_rank)
        yield f"{attention}.kv_a_proj_with_mqa.weight", (config.latent_dim, hidden)
        yield f"{attention}.kv_a_layernorm.weight", (rank,)
        if latent_heads:
            yield f"{attention}.k_b_proj.weight", (heads, rank, nope)
            yield f"{attention}.v_b_proj.weight", (heads, value, rank)
        else:
            yield f"{attention}.kv_b_proj.weight", (heads * (nope + value), rank)
        yield f"{attention}.o_proj.weight", (hidden, heads * value)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        if layer_idx < config.first_k_dense_replace:
            yield from _mlp_shapes(f"{layer}.mlp", (config.intermediate_size, hidden))
            continue
        yield f"{layer}.mlp.gate.weight", (num_experts, hidden)
        yield f"{layer}.mlp.gate.e_score_correction_bias", (num_experts,)
        yield from _mlp_shapes(f"{layer}.mlp.experts", (num_experts, width, hidden))
        shared = (config.n_shared_experts * width, hidden)
        yield from _mlp_shapes(f"{layer}.mlp.shared_experts", shared)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def _mlp_shapes(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    *stack, width, hidden = shape
    yield f"{name}.gate_proj.weight", (*stack, width, hidden)
    yield f"{name}.up_proj.weight", (*stack, width, hidden)
    yield f"{name}.down_proj.weight", (*stack, hidden, width)


def _add_attention(writer: GGUFWriter, config: K2Config, latent_heads: bool) -> None:
    writer.add_head_count(config.num_attention_heads)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if latent_heads:
        writer.add_head_count_kv(1)
        writer.add_key_length(config.latent_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(config.qk_head_dim)
        writer.add_value_length_mla(config.v_head_dim)
    else:
        writer.add_head_count_kv(config.num_attention_heads)
        writer.add_key_length(config.qk_head_dim)
        writer.add_value_length(config.v_head_dim)


def _add_experts(writer: GGUFWriter, config: K2Config) -> None:
    import gguf

    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _add_yarn(writer: GGUFWriter, config: K2Config) -> None:
    import gguf

    yarn = config.rope_scaling
    if yarn is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_log_mul(0.1 * yarn.mscale_all_dim)
    writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)

"""GGUF tensor names of the `deepseek2` architecture and the Hugging Face names this program uses.

Knows names only; shapes are checked where modules are made.
"""

from __future__ import annotations

import re

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_k_b.weight": "self_attn.k_b_proj.weight",
    "attn_v_b.weight": "self_attn.v_b_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_exps.weight": "mlp.experts.gate_proj.weight",
    "ffn_up_exps.weight": "mlp.experts.up_proj.weight",
    "ffn_down_exps.weight": "mlp.experts.down_proj.weight",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)")
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TO_GGUF = {hf: gguf for gguf, hf in (_GLOBAL | _LAYER).items()}


def to_canonical(gguf_name: str) -> str | None:
    """`blk.3.ffn_up_exps.weight` -> `model.layers.3.mlp.experts.up_proj.weight`, or None."""
    block = _BLOCK.fullmatch(gguf_name)
    if block is None:
        return _GLOBAL.get(gguf_name)
    name = _LAYER.get(block[2])
    return name and f"model.layers.{block[1]}.{name}"


def to_gguf(canonical_name: str) -> str:
    """The inverse; a name without a GGUF form is returned as it is."""
    layer = _LAYER_NAME.fullmatch(canonical_name)
    if layer is None:
        return _TO_GGUF.get(canonical_name, canonical_name)
    name = _TO_GGUF.get(layer[2])
    return f"blk.{layer[1]}.{name}" if name else canonical_name

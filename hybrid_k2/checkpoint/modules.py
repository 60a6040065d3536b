"""`ModuleSpec`: one piece of the model as the checkpoint stores it, before it has a place to run.

Owns the list of K2's modules, the tensors each needs and their shapes. Knows no bytes of a file and
no backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_k2.checkpoint.gguf_names import to_gguf
from hybrid_k2.config import K2Config
from hybrid_k2.errors import ModelFileError
from hybrid_k2.quant.stored import StoredTensor

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module of the model: its class (which rules match and backends serve) and its tensors."""

    name: str
    module_class: str
    layer_idx: int | None
    tensors: Mapping[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all its tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def num_weights(self) -> int:
        """Weights of all its tensors."""
        return sum(tensor.num_weights for tensor in self.tensors.values())

    def bytes_per_token(self, config: K2Config) -> int:
        """Stored bytes that one token reads: an embedding's row, the chosen experts, else all."""
        if self.module_class == "Embedding":
            return self.tensors["weight"].row_bytes
        if self.module_class == "Experts":
            return self.num_bytes * config.num_experts_per_tok // config.n_routed_experts
        return self.num_bytes


def build_modules(config: K2Config, tensors: Mapping[str, StoredTensor]) -> list[ModuleSpec]:
    """All modules of the model in the order in which a token passes them.

    Raises ModelFileError naming the tensor that is missing or whose shape contradicts the config.
    """
    return _Builder(config, tensors).build()


class _Builder:
    def __init__(self, config: K2Config, tensors: Mapping[str, StoredTensor]) -> None:
        self._config, self._tensors = config, tensors
        self._modules: list[ModuleSpec] = []

    def build(self) -> list[ModuleSpec]:
        config = self._config
        vocabulary = (config.vocab_size, config.hidden_size)
        self._single("Embedding", "model.embed_tokens", None, vocabulary)
        for layer_idx in range(config.num_hidden_layers):
            self._layer(layer_idx)
        self._single("Norm", "model.norm", None, (config.hidden_size,))
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        weight = self._tensor(f"{head}.weight", vocabulary)
        self._add("Linear", "lm_head", None, {"weight": weight})
        return self._modules

    def _layer(self, layer_idx: int) -> None:
        config, layer = self._config, f"model.layers.{layer_idx}"
        hidden = config.hidden_size
        self._single("Norm", f"{layer}.input_layernorm", layer_idx, (hidden,))
        self._attention(f"{layer}.self_attn", layer_idx)
        self._single("Norm", f"{layer}.post_attention_layernorm", layer_idx, (hidden,))
        if layer_idx < config.first_k_dense_replace:
            self._mlp("MLP", f"{layer}.mlp", layer_idx, (config.intermediate_size, hidden))
            return
        num_experts, width = config.n_routed_experts, config.moe_intermediate_size
        bias_name = f"{layer}.mlp.gate.e_score_correction_bias"
        router = {
            "weight": self._tensor(f"{layer}.mlp.gate.weight", (num_experts, hidden)),
            "e_score_correction_bias": self._tensor(bias_name, (num_experts,)),
        }
        self._add("Router", f"{layer}.mlp.gate", layer_idx, router)
        self._mlp("Experts", f"{layer}.mlp.experts", layer_idx, (num_experts, width, hidden))
        shared_width = config.n_shared_experts * width
        self._mlp("MLP", f"{layer}.mlp.shared_experts", layer_idx, (shared_width, hidden))

    def _attention(self, name: str, layer_idx: int) -> None:
        config = self._config
        hidden, rank, heads = config.hidden_size, config.q_lora_rank, config.num_attention_heads
        q_rows = heads * config.qk_head_dim
        if rank is None:
            self._single("Linear", f"{name}.q_proj", layer_idx, (q_rows, hidden))
        else:
            self._single("Linear", f"{name}.q_a_proj", layer_idx, (rank, hidden))
            self._single("Norm", f"{name}.q_a_layernorm", layer_idx, (rank,))
            self._single("Linear", f"{name}.q_b_proj", layer_idx, (q_rows, rank))
        latent = (config.latent_dim, hidden)
        self._single("Linear", f"{name}.kv_a_proj_with_mqa", layer_idx, latent)
        self._single("Norm", f"{name}.kv_a_layernorm", layer_idx, (config.kv_lora_rank,))
        self._add("Attention", name, layer_idx, self._kv_b(name))
        o_proj = (hidden, heads * config.v_head_dim)
        self._single("Linear", f"{name}.o_proj", layer_idx, o_proj)

    def _kv_b(self, name: str) -> dict[str, StoredTensor]:
        """Whichever of the three layouts is there; k_b and v_b, ready for use, win over kv_b."""
        config, tensors = self._config, self._tensors
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        nope, value = config.qk_nope_head_dim, config.v_head_dim
        k_b, v_b, kv_b = (
            f"{name}.{short}.weight" for short in ("k_b_proj", "v_b_proj", "kv_b_proj")
        )
        if k_b in tensors and v_b in tensors:
            return {
                "k_b_proj": self._stacked(k_b, (heads, rank, nope)),
                "v_b_proj": self._stacked(v_b, (heads, value, rank)),
            }
        if kv_b in tensors:
            return {"kv_b_proj": self._tensor(kv_b, (heads * (nope + value), rank))}
        names = [_both_names(missing) for missing in (kv_b, k_b, v_b)]
        raise ModelFileError(f"missing tensor: {names[0]}, or both {names[1]} and {names[2]}")

    def _stacked(self, name: str, shape: tuple[int, int, int]) -> StoredTensor:
        """A 3-D tensor, which older files store with the heads' rows in one matrix."""
        stack, rows, columns = shape
        if self._tensors[name].shape == (stack * rows, columns):
            return self._tensors[name].reshaped(*shape)
        return self._tensor(name, shape)

    def _mlp(self, module_class: str, name: str, layer_idx: int, shape: tuple[int, ...]) -> None:
        """shape: of gate and up, [..., width, hidden]; down swaps the last two."""
        down = (*shape[:-2], shape[-1], shape[-2])
        shapes = zip(_PROJECTIONS, (shape, shape, down), strict=True)
        tensors = {key: self._tensor(f"{name}.{key}.weight", shape) for key, shape in shapes}
        self._add(module_class, name, layer_idx, tensors)

    def _single(
        self, module_class: str, name: str, layer_idx: int | None, shape: tuple[int, ...]
    ) -> None:
        self._add(module_class, name, layer_idx, {"weight": self._tensor(f"{name}.weight", shape)})

    def _add(
        self, module_class: str, name: str, layer_idx: int | None, tensors: dict[str, StoredTensor]
    ) -> None:
        self._modules.append(ModuleSpec(name, module_class, layer_idx, tensors))

    def _tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"missing tensor: {_both_names(name)}, of shape {shape}")
        if tensor.shape != shape:
            raise ModelFileError(
                f"tensor {_both_names(name)} has the shape {tensor.shape}; the config says {shape}"
            )
        return tensor


def _both_names(name: str) -> str:
    return f"{name} ({to_gguf(name)} in the file)"

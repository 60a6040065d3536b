"""What a Kimi K2 is (`K2Config`) and how it is to be run (`RuntimeConfig`): validated, frozen.

Reads Hugging Face's config.json and GGUF keys as mappings, and every environment variable, once. It
knows no files, no tensors and no devices. Field names are Hugging Face's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_k2.cgroups import usable_cores
from hybrid_k2.errors import BadInputError, ModelFileError

# Above any K2; below what would let a lying file make us allocate or loop for long.
MAX_COUNT = 1 << 24
MAX_LAYERS = 1 << 12
MAX_REAL = 1e12
GGUF_ARCHITECTURE = "deepseek2"
GGUF_SIGMOID = 2  # 1 is softmax


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """YaRN context extension; a key that a file leaves out takes K2's own value, not DeepSeek's."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 1.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


@dataclass(frozen=True, slots=True)
class K2Config:
    """One checkpoint's architecture, validated; a bad field raises ModelFileError with its name."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: YarnConfig | None
    rms_norm_eps: float
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        """Checks what one key cannot show by itself: fields against each other."""
        if self.num_experts_per_tok > self.n_routed_experts:
            _bad(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"n_routed_experts is {self.n_routed_experts}",
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            _bad(
                "first_k_dense_replace",
                self.first_k_dense_replace,
                f"there are {self.num_hidden_layers} layers",
            )
        if self.qk_rope_head_dim % 2:
            _bad(
                "qk_rope_head_dim", self.qk_rope_head_dim, "RoPE rotates pairs, so it must be even"
            )
        for token_id in self.eos_token_ids:
            if not 0 <= token_id < self.vocab_size:
                _bad("eos_token_id", token_id, f"vocab_size is {self.vocab_size}")
        if self.rope_scaling is not None and self.rope_scaling.factor < 1:
            _bad("rope_scaling.factor", self.rope_scaling.factor, "YaRN only extends a context")

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query: the part without position, then the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Numbers cached per token and layer: the compressed KV and the shared rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts; they follow the dense ones."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def softmax_scale(self) -> float:
        """Factor of the attention scores: 1/sqrt(head) times YaRN's squared mscale."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None:
            yarn = self.rope_scaling
            scale *= yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2
        return scale

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        name: str = "",
    ) -> K2Config:
        """Reads config.json (and generation_config.json) of any K2, or K2.5's `text_config`.

        Raises ModelFileError for a missing or bad key and for what this engine does not compute.
        """
        config = _mapping(config, "text_config") or config
        keys = _Keys("config.json", config)
        _require_supported(keys)
        rope = _mapping(config, "rope_parameters") or _mapping(config, "rope_scaling")
        theta_keys = (
            keys if "rope_theta" in config else _Keys("config.json rope_parameters", rope or {})
        )
        q_lora_rank = config.get("q_lora_rank")
        return cls(
            vocab_size=keys.count("vocab_size"),
            hidden_size=keys.count("hidden_size"),
            intermediate_size=keys.count("intermediate_size"),
            moe_intermediate_size=keys.count("moe_intermediate_size"),
            num_hidden_layers=keys.count("num_hidden_layers"),
            first_k_dense_replace=keys.count("first_k_dense_replace", minimum=0),
            n_routed_experts=keys.count("n_routed_experts"),
            n_shared_experts=keys.count("n_shared_experts"),
            num_experts_per_tok=keys.count("num_experts_per_tok"),
            routed_scaling_factor=keys.real("routed_scaling_factor"),
            norm_topk_prob=keys.flag("norm_topk_prob"),
            num_attention_heads=keys.count("num_attention_heads"),
            q_lora_rank=None if q_lora_rank is None else keys.count("q_lora_rank"),
            kv_lora_rank=keys.count("kv_lora_rank"),
            qk_nope_head_dim=keys.count("qk_nope_head_dim"),
            qk_rope_head_dim=keys.count("qk_rope_head_dim"),
            v_head_dim=keys.count("v_head_dim"),
            max_position_embeddings=keys.count("max_position_embeddings"),
            rope_theta=theta_keys.real("rope_theta"),
            rope_scaling=_hf_yarn(rope),
            rms_norm_eps=keys.real("rms_norm_eps"),
            tie_word_embeddings=keys.flag("tie_word_embeddings", False),
            eos_token_ids=_eos_ids(
                (generation_config or {}).get("eos_token_id"), config.get("eos_token_id")
            ),
            name=name or str(config.get("_name_or_path") or ""),
        )

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        *,
        name: str = "",
    ) -> K2Config:
        """Reads the `deepseek2.*` keys of a GGUF.

        shapes: the file's tensors by GGUF name, numpy order; they give the vocabulary's size where
        no key does, and say whether the router has a correction bias (only sigmoid routing has).
        """
        shapes = shapes or {}
        architecture = metadata.get("general.architecture")
        if not (isinstance(architecture, str) and architecture == GGUF_ARCHITECTURE):
            raise ModelFileError(
                f"general.architecture is {architecture!r}; Kimi K2 files say {GGUF_ARCHITECTURE!r}"
                ", and this program runs nothing else"
            )
        keys = _Keys("GGUF", metadata, prefix=f"{GGUF_ARCHITECTURE}.")
        _require_supported_gguf(
            keys, has_router_bias=any("exp_probs_b" in tensor for tensor in shapes)
        )
        rope_dim = keys.count("rope.dimension_count")
        # The *_mla keys came with mainline's MQA form, whose key_length is the latent's 576.
        key_length = keys.count(
            "attention.key_length_mla", default=keys.get("attention.key_length")
        )
        value_length = keys.count(
            "attention.value_length_mla", default=keys.get("attention.value_length")
        )
        if key_length <= rope_dim:
            _bad(
                keys.name("attention.key_length"), key_length, f"rope.dimension_count is {rope_dim}"
            )
        embedding = shapes.get("token_embd.weight", (keys.get("vocab_size"),))
        return cls(
            vocab_size=keys.count("vocab_size", default=embedding[0]),
            hidden_size=keys.count("embedding_length"),
            intermediate_size=keys.count("feed_forward_length"),
            moe_intermediate_size=keys.count("expert_feed_forward_length"),
            num_hidden_layers=keys.count("block_count"),
            first_k_dense_replace=keys.count("leading_dense_block_count", default=0, minimum=0),
            n_routed_experts=keys.count("expert_count"),
            n_shared_experts=keys.count("expert_shared_count"),
            num_experts_per_tok=keys.count("expert_used_count"),
            routed_scaling_factor=keys.real("expert_weights_scale", 1.0),
            norm_topk_prob=keys.flag("expert_weights_norm", True),
            num_attention_heads=keys.count("attention.head_count"),
            q_lora_rank=keys.count("attention.q_lora_rank", default=0, minimum=0) or None,
            kv_lora_rank=keys.count("attention.kv_lora_rank"),
            qk_nope_head_dim=key_length - rope_dim,
            qk_rope_head_dim=rope_dim,
            v_head_dim=value_length,
            max_position_embeddings=keys.count("context_length"),
            rope_theta=keys.real("rope.freq_base"),
            rope_scaling=_gguf_yarn(keys),
            rms_norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
            eos_token_ids=_eos_ids(
                metadata.get("tokenizer.ggml.eot_token_id"),
                metadata.get("tokenizer.ggml.eos_token_id"),
            ),
            name=name or _Keys("GGUF", metadata).text("general.name", ""),
        )


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How to run: sizes in tokens and bytes. Nothing here changes what the model computes."""

    context: int = 4096  # 0 = the model's maximum
    prefill_chunk: int = 0  # 0 = as the plan finds best
    num_threads: int = 0  # 0 = every core this process may use
    tier: str = ""  # "" = the best this machine runs
    max_sequences: int = 4
    vram_bytes: int | None = None  # None = what the device has
    ram_bytes: int | None = None
    cache_dir: Path | None = None  # prefixes survive a restart here
    cache_quota_bytes: int = 64 << 30  # of cache_dir, for all models together
    cache_ram_bytes: int = 8 << 30  # for prefixes evicted from a GPU

    def __post_init__(self) -> None:
        minimums = {"context": 0, "prefill_chunk": 0, "num_threads": 0, "max_sequences": 1}
        for name, minimum in minimums.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not minimum <= value <= MAX_COUNT:
                raise BadInputError(f"{name} is {value!r}; give {minimum} to {MAX_COUNT}")
        for name in ("vram_bytes", "ram_bytes", "cache_quota_bytes", "cache_ram_bytes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise BadInputError(f"{name} is {value!r}; give a number of bytes, 0 or more")

    @property
    def resolved_threads(self) -> int:
        """`num_threads`, with 0 resolved to the cores this process may use."""
        return self.num_threads or usable_cores()

    @classmethod
    def from_env(cls, **overrides: Any) -> RuntimeConfig:
        """Defaults, then the environment (see ENVIRONMENT), then overrides that are not None."""
        known = {field.name for field in fields(cls)}
        values = {}
        for variable, (name, parse) in ENVIRONMENT.items():
            text = os.environ.get(variable, "")
            if text:
                try:
                    values[name] = parse(text)
                except ValueError:
                    raise BadInputError(
                        f"{variable}={text!r} is not a whole number; unset it or give one"
                    ) from None
        for name, value in overrides.items():
            if name not in known:
                raise BadInputError(
                    f"unknown runtime option {name!r}; known: {', '.join(sorted(known))}"
                )
            if value is not None:
                values[name] = value
        return cls(**values)


ENVIRONMENT: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "HYBRID_K2_ISA": ("tier", str),
    "HYBRID_K2_THREADS": ("num_threads", int),
    "HYBRID_K2_CONTEXT": ("context", int),
    "HYBRID_K2_RAM_BYTES": ("ram_bytes", int),
    "HYBRID_K2_VRAM_BYTES": ("vram_bytes", int),
}


def state_dir() -> Path:
    """Where this user's chat history belongs; by the XDG rules a relative path is ignored."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "hybrid-k2"


def wants_colour() -> bool:
    """False where NO_COLOR is set to anything or the terminal knows no colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature: 1 + 0.1 * mscale * ln(factor), and 1 where nothing is extended."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class _Keys:
    """Typed reads of one mapping; each failure names the key, its value and where it stands."""

    def __init__(self, source: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self._source, self._values, self._prefix = source, values, prefix

    def name(self, key: str) -> str:
        return f"{self._source} key {self._prefix}{key}"

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(self._prefix + key)
        return default if value is None else value

    def count(self, key: str, *, default: Any = None, minimum: int = 1) -> int:
        value = self._required(key, default)
        if isinstance(value, (list, tuple, np.ndarray)):  # one per layer; K2's are alike
            if len(value) == 0 or any(other != value[0] for other in value[:MAX_LAYERS]):
                _bad(self.name(key), list(value[:8]), "one value for all layers is supported")
            value = value[0]
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            _bad(self.name(key), value, "a whole number is expected")
        if not minimum <= value <= MAX_COUNT:
            _bad(self.name(key), value, f"{minimum} to {MAX_COUNT} is expected")
        return int(value)

    def real(self, key: str, default: float | None = None, *, or_zero: bool = False) -> float:
        value = self._required(key, default)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
            _bad(self.name(key), value, "a number is expected")
        if not (0 < value < MAX_REAL or (or_zero and value == 0)):  # NaN is neither
            _bad(self.name(key), value, "a finite number above 0 is expected")
        # A float32 of a GGUF reads back as the decimal that was written: 2.827, not 2.8269999027.
        return float(str(np.float32(value))) if self._prefix else float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._required(key, default)
        if not isinstance(value, (bool, np.bool_)):
            _bad(self.name(key), value, "true or false is expected")
        return bool(value)

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            _bad(self.name(key), value, "text is expected")
        return value

    def _required(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ModelFileError(f"{self.name(key)} is missing; is this a Kimi K2?")
        return value


def _require_supported(keys: _Keys) -> None:
    """Raises for values that ask for other mathematics than K2's; an absent key means K2's."""
    only = {
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "attention_bias": False,
    }
    for key, value in only.items():
        found = keys.get(key, value)
        if found != value:
            _bad(keys.name(key), found, f"only {value!r} is supported, as in every Kimi K2")


def _require_supported_gguf(keys: _Keys, *, has_router_bias: bool) -> None:
    """Raises for softmax gating and grouped routing.

    A file without the gating key means softmax to llama.cpp (DeepSeek-V2's); one that carries
    routing correction biases can only be sigmoid-gated, so it is read as such.
    """
    default = GGUF_SIGMOID if has_router_bias else None
    gating = keys.count("expert_gating_func", default=default, minimum=0)
    if gating != GGUF_SIGMOID:
        _bad(
            keys.name("expert_gating_func"),
            gating,
            f"only {GGUF_SIGMOID} (sigmoid) is supported, as in every Kimi K2",
        )
    groups = keys.count("expert_group_count", default=1, minimum=0)
    if groups > 1:
        _bad(keys.name("expert_group_count"), groups, "only 1 is supported, as in every Kimi K2")


def _hf_yarn(rope: Mapping[str, Any] | None) -> YarnConfig | None:
    if not rope:
        return None
    keys = _Keys("config.json rope_scaling", rope)
    kind = rope.get("rope_type") or rope.get("type")
    if kind in (None, "default"):
        return None
    if kind != "yarn":
        _bad(keys.name("type"), kind, "only 'yarn' is supported, as in every Kimi K2")
    optional = {
        key: keys.real(key, or_zero=key.startswith("mscale"))
        for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        if rope.get(key) is not None
    }
    return YarnConfig(
        keys.real("factor"), keys.count("original_max_position_embeddings"), **optional
    )


def _gguf_yarn(keys: _Keys) -> YarnConfig | None:
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        _bad(keys.name("rope.scaling.type"), kind, "only 'yarn' is supported, as in every Kimi K2")
    # The key holds 0.1 * mscale_all_dim. K2's mscale equals it, so cos and sin stay unscaled.
    mscale = round(10 * keys.real("rope.scaling.yarn_log_multiplier", 0.1, or_zero=True), 6)
    return YarnConfig(
        factor=keys.real("rope.scaling.factor"),
        original_max_position_embeddings=keys.count("rope.scaling.original_context_length"),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 1.0),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0),
        mscale=mscale,
        mscale_all_dim=mscale,
    )


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        _bad(f"config.json key {key}", value, "an object is expected")
    return value


def _eos_ids(*sources: Any) -> tuple[int, ...]:
    """Token ids that end an answer, without repeats; each source is None, an id or a list."""
    ids: dict[int, None] = {}
    for source in sources:
        for token_id in source if isinstance(source, (list, tuple)) else [source]:
            if token_id is not None:
                if isinstance(token_id, bool) or not isinstance(token_id, (int, np.integer)):
                    _bad("eos_token_id", token_id, "a token id is expected")
                ids[int(token_id)] = None
    return tuple(ids)


def _bad(name: str, value: Any, why: str) -> None:
    raise ModelFileError(f"{name} is {value!r}: {why}")

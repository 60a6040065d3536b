"""What a module will cost on a backend, known from shapes alone: bytes mapped, in RAM, in VRAM.

Follows what the backends' constructors allocate; where one changes, its line here does too.
Knows nothing of rules or of the hardware: the plan adds these up and compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from hybrid_k2.backends.registry import MMAP, BackendSpec, stays_stored
from hybrid_k2.backends.weight_memory import ram_bytes

if TYPE_CHECKING:
    from hybrid_k2.config import K2Config, RuntimeConfig
    from hybrid_k2.quant.stored import StoredTensor

_FLOAT32, _BFLOAT16 = 4, 2
# The KV cache is given out in such pages: PAGE_TOKENS of model/pages.py.
KV_PAGE_TOKENS = 64
# Tokens of a prompt that go through the model at once, where nothing speaks for more.
DEFAULT_CHUNK = 512
_KV_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_KV_SCALE_BYTES = {"int8": 16}  # a token's, SCALE_BYTES of kernels/pages.py
# Rows decoded at a time (float32 and its bfloat16 copy): `_SCRATCH_BYTES` of backends/linear.py.
_LINEAR_SCRATCH_BYTES = (256 + 128) << 20
# One block of scores or decompressed keys: `_SCRATCH_BYTES` of backends/attention.py.
_ATTENTION_SCRATCH_BYTES = 64 << 20
# Decompressed keys and values of some heads: `_SCRATCH_BYTES` of backends/attention_gpu.py.
_GPU_ATTENTION_SCRATCH_BYTES = 512 << 20

_EXPERT_GROUP = 4  # decoded together: GROUP of backends/expert_groups.py

# What a process costs before any weight: Python, torch and the kernels' buffers; a CUDA context
# with cuBLAS workspaces and the allocator's slack. With these, K2's non-routed weights on an H200
# took 17.3 GB of 17.4 planned (stored, 32K tokens) and 34.2 of 34.5 (bfloat16, 128K).
PROCESS_RAM_BYTES = 512 << 20
CUDA_CONTEXT_BYTES = 3 << 29


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one module. Devices are "cpu", "cuda:0", ...

    mapped: file bytes used where they lie, which the page cache must hold to run at full speed.
    ram, vram: allocated for as long as the model is open; `kv` of them is the KV cache.
    scratch: per device, while the module runs; modules run one after another and share it.
    reads: per device, weight bytes that one decoded token reads.
    """

    mapped: int = 0
    ram: int = 0
    vram: Mapping[str, int] = field(default_factory=dict)
    kv: int = 0
    scratch: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)


def footprint(
    spec: BackendSpec,
    module_class: str,
    tensors: Mapping[str, "StoredTensor"],
    kwargs: Mapping[str, Any],
    config: "K2Config",
    runtime: "RuntimeConfig",
    cache_tokens: int | None = None,
) -> Footprint:
    """Bytes of a module of `module_class` on `spec`; `kwargs` as `spec.resolve_kwargs` returns.

    cache_tokens: that the KV cache has room for; by default those of one sequence.
    """
    device = kwargs.get("device", "cpu")
    stored_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    num_weights = _num_weights(tensors)
    if module_class == "Embedding":  # a chunk of rows is less than what attention needs
        row_bytes = stored_bytes // max(1, tensors["weight"].shape[0])
        return Footprint(mapped=stored_bytes, reads={"cpu": row_bytes})
    if module_class == "Attention":
        cache_tokens = cache_tokens or sequence_tokens(config, runtime)
        kv = cache_tokens * kv_bytes_per_token(config, kwargs.get("kv_dtype", "float32"))
        if spec.name == "attention_gpu":
            return _attention_gpu(tensors, device, config, runtime, kv)
        return _attention(tensors, device, config, runtime, kv)
    if module_class == "Norm" or (module_class == "Router" and device != "cpu"):
        return _resident(device, _FLOAT32 * num_weights)
    if module_class == "Router":
        bias_bytes = _FLOAT32 * prod(tensors["e_score_correction_bias"].shape)
        return Footprint(mapped=stored_bytes, ram=bias_bytes, reads={"cpu": stored_bytes})
    if module_class == "Experts":
        reads = stored_bytes * config.num_experts_per_tok // config.n_routed_experts
        rows = _chunk_tokens(config, runtime) * config.num_experts_per_tok
        scratch = rows * (2 * config.moe_intermediate_size + config.hidden_size) * _FLOAT32
    else:
        reads = stored_bytes
        widest = max(tensor.shape[-2] for tensor in tensors.values())
        scratch = _chunk_tokens(config, runtime) * widest * (_FLOAT32 + 2)
    if spec.name == "reference":
        scratch += max(_FLOAT32 * prod(tensor.shape[-2:]) for tensor in tensors.values())
    if device == "cpu" or spec.name == "experts_hybrid":
        load = kwargs.get("load", MMAP)
        ram = ram_bytes([tensor.num_bytes for tensor in tensors.values()], load)
        mapped = stored_bytes if load == MMAP else 0
        scratches, vram = {"cpu": scratch}, {}
        if device != "cpu":  # the ring is one for all layers, and each accounts for its part
            num_layers = config.num_hidden_layers - config.first_k_dense_replace
            expert_bytes = stored_bytes // config.n_routed_experts
            resident = experts_that_fit(kwargs["gpu_experts_mb"], expert_bytes, config)
            resident = max(resident, kwargs["gpu_experts"])
            vram[device] = resident * expert_bytes + kwargs["stream_mb"] * 10**6 // num_layers
            scratches[device] = _expert_group_scratch(tensors, config, runtime)
        return Footprint(mapped, ram, vram, scratch=scratches, reads={"cpu": reads})
    if spec.name == "reference":
        return Footprint(stored_bytes, scratch={device: scratch}, reads={"cpu": reads})
    num_bytes = _gpu_bytes(tensors, is_stored=kwargs["weights"] == "stored")
    return _resident(device, num_bytes, scratch + _LINEAR_SCRATCH_BYTES)


def experts_that_fit(vram_mb: int, expert_bytes: int, config: "K2Config") -> int:
    """Of each layer, into so many 10^6 bytes for all layers together."""
    num_layers = config.num_hidden_layers - config.first_k_dense_replace
    return min(vram_mb * 10**6 // num_layers // expert_bytes, config.n_routed_experts)


def kv_bytes_per_token(config: "K2Config", kv_dtype: str) -> int:
    """Bytes that one layer's latent KV cache takes for one token."""
    return config.latent_dim * _KV_ITEM_BYTES[kv_dtype] + _KV_SCALE_BYTES.get(kv_dtype, 0)


def context_tokens(config: "K2Config", runtime: "RuntimeConfig") -> int:
    """Tokens the KV cache is sized for: the run's context, at most (and for 0) the model's."""
    return min(runtime.context or config.max_position_embeddings, config.max_position_embeddings)


def sequence_tokens(config: "K2Config", runtime: "RuntimeConfig") -> int:
    """Tokens of KV cache that a sequence of the whole context takes: whole pages, and one more for
    a page that is shared when it is written to.
    """
    return (-(-context_tokens(config, runtime) // KV_PAGE_TOKENS) + 1) * KV_PAGE_TOKENS


def _num_weights(tensors: Mapping[str, "StoredTensor"]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors.values())


def _gpu_bytes(tensors: Mapping[str, "StoredTensor"], *, is_stored: bool) -> int:
    """VRAM of weights that keep their blocks where kernels read their format, else bfloat16."""
    return sum(
        tensor.num_bytes
        if is_stored and stays_stored(tensor.quant.name)
        else _BFLOAT16 * prod(tensor.shape)
        for tensor in tensors.values()
    )


def _expert_group_scratch(
    tensors: Mapping[str, "StoredTensor"], config: "K2Config", runtime: "RuntimeConfig"
) -> int:
    """A group of experts decoded, and activations of a chunk: x in bfloat16, y, and the CPU's y;
    the tokens of one group are few beside those.
    """
    decoded = _EXPERT_GROUP * _BFLOAT16 * _num_weights(tensors) // config.n_routed_experts
    chunk = _chunk_tokens(config, runtime) * config.hidden_size
    return decoded + chunk * (_BFLOAT16 + 2 * _FLOAT32)


def _chunk_tokens(config: "K2Config", runtime: "RuntimeConfig") -> int:
    """Tokens that go through the model at once."""
    return min(runtime.prefill_chunk or DEFAULT_CHUNK, context_tokens(config, runtime))


def _resident(device: str, num_bytes: int, scratch: int = 0) -> Footprint:
    """Allocated on `device` and read in full at every token."""
    ram, vram = (num_bytes, {}) if device == "cpu" else (0, {device: num_bytes})
    return Footprint(
        ram=ram,
        vram=vram,
        scratch={device: scratch} if scratch else {},
        reads={device: num_bytes},
    )


def _attention_gpu(
    tensors: Mapping[str, "StoredTensor"],
    device: str,
    config: "K2Config",
    runtime: "RuntimeConfig",
    kv: int,
) -> Footprint:
    weights = _gpu_bytes(tensors, is_stored="k_b_proj" in tensors)
    # The latents in one piece, keys and values (once more while they are padded), queries and
    # outputs of the chunk.
    head = config.qk_head_dim * _BFLOAT16
    latents = context_tokens(config, runtime) * config.latent_dim * _BFLOAT16
    one_head = 3 * context_tokens(config, runtime) * head
    block = max(one_head, 3 * _GPU_ATTENTION_SCRATCH_BYTES // 2)
    queries = 6 * _chunk_tokens(config, runtime) * config.num_attention_heads * head
    scratch = {device: latents + min(block, one_head * config.num_attention_heads) + queries}
    return Footprint(vram={device: weights + kv}, kv=kv, scratch=scratch, reads={device: weights})


def _attention(
    tensors: Mapping[str, "StoredTensor"],
    device: str,
    config: "K2Config",
    runtime: "RuntimeConfig",
    kv: int,
) -> Footprint:
    context = context_tokens(config, runtime)
    # Keys, values and scores of a block of heads, its softmax and mask; the latents in float32.
    chunk = _chunk_tokens(config, runtime)
    one_head = context * (config.qk_head_dim + config.v_head_dim + chunk) * _FLOAT32
    latents = context * config.latent_dim * _FLOAT32
    block = max(one_head, min(_ATTENTION_SCRATCH_BYTES, one_head * config.num_attention_heads))
    scratch = {device: 3 * block + 2 * latents}
    stored_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    if device == "cpu" and "k_b_proj" in tensors:
        return Footprint(stored_bytes, kv, kv=kv, scratch=scratch, reads={"cpu": stored_bytes})
    dense = sum(prod(tensor.shape) for tensor in tensors.values()) * _FLOAT32
    if device == "cpu":  # kv_b holds K transposed: it is decoded once
        return Footprint(ram=dense + kv, kv=kv, scratch=scratch, reads={"cpu": dense})
    return Footprint(vram={device: dense + kv}, kv=kv, scratch=scratch, reads={device: dense})

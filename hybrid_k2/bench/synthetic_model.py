"""A Kimi K2 of true width and few layers, its weights random blocks made in memory.

Owns which tensors a model has, their random bytes, and where each module runs. All experts of a
layer hold the same bits in memory of their own, which no cache can tell; the embeddings are as wide
as what the layers add, so that tokens differ and are routed differently. Knows no model files.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import CpuKernels
from hybrid_k2.backends.weight_memory import allocate
from hybrid_k2.checkpoint.gguf_writer import tensor_shapes
from hybrid_k2.checkpoint.modules import build_modules
from hybrid_k2.config import K2Config, RuntimeConfig, YarnConfig
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

K2 = K2Config(
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
    max_position_embeddings=262144,
    rope_theta=50000.0,
    rope_scaling=YarnConfig(64.0, 4096),
    rms_norm_eps=1e-6,
)

EXTRAPOLATED_LAYERS = 61
_DISTINCT_BYTES = 32 << 20  # of random bits in a tensor, which are then repeated
_COPY_THREADS = 8  # touching fresh memory is most of the work


@dataclass(frozen=True, slots=True)
class Placement:
    """What runs where. experts: the name of their backend; its kwargs in `experts_kwargs`.

    skew: standard deviation of the bias that steers the choice of experts; scores lie in 0 to 1, so
    0.2 makes some experts several times as popular as others.  top_k: experts of a token, 0 for
    the model's own.
    """

    device: str  # of everything that is no routed expert
    dense_quant: str = "Q8_0"
    expert_quant: str = "Q4_K"
    experts: str = "experts_cpu"
    experts_kwargs: Mapping[str, Any] | None = None
    skew: float = 0.01
    top_k: int = 0

    def quant(self, name: str) -> str:
        """The format of a tensor."""
        if "norm" in name or ".mlp.gate." in name:
            return "F32"
        return self.expert_quant if ".mlp.experts." in name else self.dense_quant

    def spread(self, name: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of a tensor's weights; matrices keep the variance of their input."""
        if name == "model.embed_tokens.weight":
            return 1.0
        return self.skew if len(shape) == 1 else shape[-1] ** -0.5


def experts_bytes(config: K2Config, quant: str) -> int:
    """Stored bytes of the routed experts of one layer."""
    width = config.n_routed_experts * config.moe_intermediate_size
    return by_name(quant).num_bytes(3 * config.hidden_size * width)


def synthetic_modules(
    config: K2Config, placement: Placement, runtime: RuntimeConfig, kernels: CpuKernels
) -> dict[str, Any]:
    """Every module of the model by name, as engine.loader makes them from a file."""
    rng = np.random.Generator(np.random.SFC64(1))
    tensors = {
        name: _tensor(rng, placement.quant(name), shape, placement.spread(name, shape))
        for name, shape in tensor_shapes(config, latent_heads=True)
    }
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.data.view(np.float32)[:] = 1.0
    modules: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for spec in build_modules(config, tensors):
        backend, kwargs = registry.default_placement(spec.module_class, placement.device)
        if spec.module_class == "Router":
            kwargs = kwargs | {"top_k": placement.top_k}
        if spec.module_class == "Experts":
            backend, kwargs = placement.experts, placement.experts_kwargs or {}
        context = BackendContext(config, runtime, kernels, spec.layer_idx, shared)
        modules[spec.name] = registry.create(
            backend, spec.module_class, spec.tensors, context, kwargs
        )
    return modules


def _tensor(
    rng: np.random.Generator, quant: str, shape: tuple[int, ...], std: float
) -> StoredTensor:
    form = by_name(quant)
    num_bytes = form.num_bytes(math.prod(shape))
    data = allocate(num_bytes, registry.RAM_HUGE)
    pattern_bytes = num_bytes // shape[0] if len(shape) == 3 else num_bytes  # whole experts
    pattern_bytes = min(pattern_bytes, _DISTINCT_BYTES // form.block_bytes * form.block_bytes)
    pattern = random_blocks(rng, form, pattern_bytes // form.block_bytes, std).reshape(-1)
    pattern = pattern.view(np.uint8)

    def fill(start: int) -> None:
        piece = data[start : start + pattern_bytes]
        piece[:] = pattern[: len(piece)]

    with ThreadPoolExecutor(_COPY_THREADS) as pool:
        list(pool.map(fill, range(0, num_bytes, pattern_bytes)))
    return StoredTensor("synthetic", form, shape, data)

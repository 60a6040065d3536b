"""A latent cache of 8 bits: what attention gives it, what the pages hold, what attention makes of
it. The kernels that read such pages are tested in tests/triton.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybrid_k2.backends import footprint
from hybrid_k2.backends.attention_gpu import AttentionGpu
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.bench.synthetic_model import K2
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.kernels.pages import SCALE_BYTES, dequantise_rows
from hybrid_k2.model.kv_cache import PagePool
from hybrid_k2.quant import by_name
from hybrid_k2.quant.stored import StoredTensor

CONFIG = replace(
    K2,
    num_attention_heads=4,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
)
RANK, LATENT = CONFIG.kv_lora_rank, CONFIG.latent_dim


def attention(kv_dtype):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4 * 64, RANK), np.float32) / RANK**0.5
    stored = StoredTensor("kv_b", by_name("F32"), weights.shape, weights.view(np.uint8).reshape(-1))
    context = BackendContext(CONFIG, RuntimeConfig(), None)
    return AttentionGpu({"kv_b_proj": stored}, context, "cpu", kv_dtype)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cached(module, latents):
    """The rows that a cache gives back for these."""
    placements = [(module.device, module.kv_dtype)]
    cache = PagePool(placements, LATENT, num_pages=4).new_cache()
    cache.reserve(len(latents))
    for first in range(0, len(latents), 50):
        cache.write(0, first, module.cache_rows(latents[first : first + 50]))
    return cache.read(0, len(latents))


def test_rows_keep_eight_bits_of_both_parts_and_take_what_the_plan_says():
    module, latents = attention("int8"), randn(150, LATENT)
    latents[:, RANK:] *= 40  # k_pe is of another size
    (rows,) = cached(module, latents)
    assert rows.dtype == torch.int8 and rows.shape == (150, LATENT + SCALE_BYTES)
    assert rows.shape[1] == footprint.kv_bytes_per_token(CONFIG, "int8")
    back = dequantise_rows(rows, RANK)
    for part in (slice(0, RANK), slice(RANK, LATENT)):
        largest = latents[:, part].abs().amax(1, keepdim=True)
        assert ((back - latents)[:, part].abs() <= largest / 127 * 0.501).all()


@pytest.mark.parametrize("num_queries", [1, 40])
def test_attention_over_them_is_off_by_little(num_queries):
    latents = randn(150, LATENT)
    q_nope, q_pe = randn(num_queries, 4, 32, seed=2), randn(num_queries, 4, 16, seed=3)
    exact, rounded = (
        module(q_nope, q_pe, cached(module, latents))
        for module in (attention("bfloat16"), attention("int8"))
    )
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()

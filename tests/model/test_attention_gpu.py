"""The GPU's attention on the CPU, without kernels: both ways to attend, against the CPU's own.

Latents and products are bfloat16; decode from pages is tested in tests/triton and tests/gpu.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybrid_k2.backends import attention_gpu
from hybrid_k2.backends.attention import Attention
from hybrid_k2.backends.attention_gpu import AttentionGpu
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.bench.synthetic_model import K2
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant import by_name
from hybrid_k2.quant.stored import StoredTensor

HEADS, RANK, NOPE, ROPE = 4, 64, 32, 16


def pair(value_dim):
    """(the GPU's, the CPU's) over the same weights."""
    config = replace(
        K2,
        num_attention_heads=HEADS,
        kv_lora_rank=RANK,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=value_dim,
    )
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((HEADS * (NOPE + value_dim), RANK), np.float32) / RANK**0.5
    stored = StoredTensor("kv_b", by_name("F32"), weights.shape, weights.view(np.uint8).reshape(-1))
    context = BackendContext(config, RuntimeConfig(num_threads=1), None)
    tensors = {"kv_b_proj": stored}
    return AttentionGpu(tensors, context, "cpu"), Attention(tensors, context)


@pytest.mark.parametrize("value_dim", [32, 48, 64])  # keys have 48
@pytest.mark.parametrize(("num_queries", "length"), [(1, 9), (15, 40), (16, 16), (30, 70)])
def test_prompts_of_any_shape_are_attended_as_on_the_cpu(
    num_queries, length, value_dim, monkeypatch
):
    monkeypatch.setattr(attention_gpu, "_SCRATCH_BYTES", 4 * 70 * 64 * 3)  # blocks of 3 heads or so
    generator = torch.Generator().manual_seed(1)
    q_nope, q_pe, latents = (
        torch.randn(*shape, generator=generator)
        for shape in [(num_queries, HEADS, NOPE), (num_queries, HEADS, ROPE), (length, RANK + ROPE)]
    )
    ours, exact = pair(value_dim)
    expected = exact(q_nope, q_pe, [latents])
    parts = latents.bfloat16().split([length // 2, length - length // 2])
    out = ours(q_nope, q_pe, parts)
    assert out.shape == (num_queries, HEADS * value_dim) and out.dtype == torch.float32
    assert (out - expected).norm() < 2**-6 * expected.norm()

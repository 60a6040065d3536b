"""Latent attention: absorbed and naive agree with each other and with the definition, in every
stored layout.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from hybrid_k2.backends import attention as attention_module
from hybrid_k2.backends.attention import Attention, naive_from_tokens
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant import by_name
from hybrid_k2.quant.stored import StoredTensor

HEADS, RANK, NOPE, ROPE, VALUE = 3, 64, 32, 8, 32
CONFIG = SimpleNamespace(
    num_attention_heads=HEADS,
    kv_lora_rank=RANK,
    qk_nope_head_dim=NOPE,
    qk_rope_head_dim=ROPE,
    qk_head_dim=NOPE + ROPE,
    v_head_dim=VALUE,
    softmax_scale=0.2,
)
LAYOUTS = ["split", "kv_b"]


def stored(name: str, weight: torch.Tensor) -> StoredTensor:
    data = weight.contiguous().numpy().reshape(-1).view("uint8")
    return StoredTensor(name, by_name("F32"), tuple(weight.shape), data)


@pytest.fixture(scope="module")
def weights() -> tuple[torch.Tensor, torch.Tensor]:
    """W_UK [heads, nope, rank] and W_UV [heads, v, rank]."""
    generator = torch.Generator().manual_seed(1)
    scale = RANK**-0.5
    return (
        torch.randn(HEADS, NOPE, RANK, generator=generator) * scale,
        torch.randn(HEADS, VALUE, RANK, generator=generator) * scale,
    )


@pytest.fixture(scope="module")
def context():
    runtime = RuntimeConfig(num_threads=2)
    return SimpleNamespace(config=CONFIG, runtime=runtime, kernels=open_cpu_kernels(runtime))


def build(layout, weights, context) -> Attention:
    w_uk, w_uv = weights
    if layout == "split":
        tensors = {
            "k_b_proj": stored("k_b", w_uk.transpose(1, 2)),
            "v_b_proj": stored("v_b", w_uv),
        }
    else:
        tensors = {"kv_b_proj": stored("kv_b", torch.cat([w_uk, w_uv], dim=1).flatten(0, 1))}
    return Attention(tensors, context)


def inputs(num_queries: int, length: int):
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(num_queries, HEADS, NOPE, generator=generator),
        torch.randn(num_queries, HEADS, ROPE, generator=generator),
        torch.randn(length, RANK + ROPE, generator=generator),
    )


def by_definition(weights, q_nope, q_pe, latents) -> torch.Tensor:
    """Section 2.1 of the DeepSeek-V2 paper, a head and a query at a time, in float64."""
    w_uk, w_uv = (w.double() for w in weights)
    c, k_pe = latents.double().split([RANK, ROPE], dim=-1)
    out = torch.empty(q_nope.shape[0], HEADS, VALUE, dtype=torch.float64)
    for t in range(q_nope.shape[0]):
        visible = latents.shape[0] - q_nope.shape[0] + t + 1
        for h in range(HEADS):
            keys = torch.cat([c[:visible] @ w_uk[h].T, k_pe[:visible]], dim=-1)
            query = torch.cat([q_nope[t, h], q_pe[t, h]]).double()
            p = torch.softmax(keys @ query * CONFIG.softmax_scale, dim=0)
            out[t, h] = p @ (c[:visible] @ w_uv[h].T)
    return out.flatten(1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["_absorbed", "_naive"])
@pytest.mark.parametrize(("num_queries", "length"), [(1, 1), (1, 9), (5, 5), (7, 20)])
def test_both_paths_give_what_the_definition_gives(
    layout, path, num_queries, length, weights, context
):
    attention = build(layout, weights, context)
    q_nope, q_pe, latents = inputs(num_queries, length)
    attend = getattr(attention, path)
    args = (q_nope.transpose(0, 1), q_pe.transpose(0, 1), [latents])
    out = attend(*args).transpose(0, 1).flatten(1)
    expected = by_definition(weights, q_nope, q_pe, latents)
    # Sums of RANK + ROPE products of unit numbers, then a convex mix of RANK-long sums.
    bound = 50 * torch.finfo(torch.float32).eps * math.sqrt(RANK) * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("path", ["_absorbed", "_naive"])
def test_working_in_blocks_changes_nothing(path, weights, context, monkeypatch):
    attention = build("split", weights, context)
    q_nope, q_pe, latents = inputs(6, 30)
    args = (q_nope.transpose(0, 1), q_pe.transpose(0, 1), [latents])
    whole = getattr(attention, path)(*args)
    monkeypatch.setattr(attention_module, "_SCRATCH_BYTES", 1)
    torch.testing.assert_close(getattr(attention, path)(*args), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["_absorbed", "_naive"])
@pytest.mark.parametrize("lengths", [(29, 1), (1, 29), (20, 4, 6), (24, 2, 2, 2)])
def test_rows_in_several_places_are_attended_to_as_in_one(
    path, lengths, weights, context, monkeypatch
):
    attention = build("split", weights, context)
    q_nope, q_pe, latents = inputs(6, 30)
    queries = (q_nope.transpose(0, 1), q_pe.transpose(0, 1))
    whole = getattr(attention, path)(*queries, [latents])
    torch.testing.assert_close(getattr(attention, path)(*queries, latents.split(lengths)), whole)
    monkeypatch.setattr(attention_module, "_SCRATCH_BYTES", 1)  # early queries see no later run
    torch.testing.assert_close(getattr(attention, path)(*queries, latents.split(lengths)), whole)


@pytest.mark.parametrize("num_queries", [1, 6])
def test_a_row_here_and_there_is_attended_to_as_in_one(num_queries, weights, context):
    attention = build("split", weights, context)
    q_nope, q_pe, latents = inputs(num_queries, 30)
    whole = attention(q_nope, q_pe, [latents])
    torch.testing.assert_close(attention(q_nope, q_pe, latents.split(1)), whole)


def test_a_bfloat16_cache_is_read_as_its_rounded_numbers(weights, context):
    attention = build("split", weights, context)
    q_nope, q_pe, latents = inputs(1, 9)
    rounded = latents.bfloat16()
    torch.testing.assert_close(
        attention(q_nope, q_pe, [rounded]), attention(q_nope, q_pe, [rounded.float()])
    )


def test_k2_decompresses_from_171_queries_on():
    k2 = SimpleNamespace(kv_lora_rank=512, qk_nope_head_dim=128, v_head_dim=128)
    assert naive_from_tokens(k2) == 171


def test_a_latent_no_wider_than_the_heads_is_never_decompressed():
    narrow = SimpleNamespace(kv_lora_rank=16, qk_nope_head_dim=32, v_head_dim=32)
    assert naive_from_tokens(narrow) > 1 << 40

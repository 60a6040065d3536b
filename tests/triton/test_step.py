"""The small kernels of a decode step against float64, and against the modules they stand for."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf_factory import tiny_config

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.kernels.activation import silu_multiply
from hybrid_k2.kernels.mla_decode import mla_decode
from hybrid_k2.kernels.norm import rms_norm
from hybrid_k2.kernels.pages import dequantise_rows, quantise_rows
from hybrid_k2.kernels.rope import rotate_and_cache
from hybrid_k2.model.rope import Rope, rotate

EVERY_CACHE = pytest.mark.parametrize("cache", ["float32", "int8"])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adds", [False, True])
def test_a_norm_of_a_sum_is_torchs_and_keeps_the_sum(adds, device):
    x, weight, add = randn(3, 200), randn(200, seed=1), randn(3, 200, seed=2)
    summed = x + add if adds else x
    expected = F.rms_norm(summed.double(), (200,), weight.double(), 1e-5)
    on_device = x.to(device)
    added = add.to(device) if adds else None
    y = rms_norm(on_device, weight.to(device), 1e-5, add=added, dtype=torch.float32)
    assert torch.allclose(y.cpu().double(), expected, rtol=2**-20, atol=0)
    assert torch.equal(on_device.cpu(), summed)


def test_a_norm_is_rounded_to_bfloat16_unless_asked_otherwise(device, bfloat16_step):
    x, weight = randn(1, 64), torch.ones(64)
    y = rms_norm(x.to(device), weight.to(device), 1e-5)
    assert y.dtype == torch.bfloat16
    expected = F.rms_norm(x, (64,), weight, 1e-5)
    assert ((y.cpu().float() - expected).abs() <= bfloat16_step * expected.abs() * 1.001).all()


def test_silu_multiply_takes_gate_from_the_left_and_up_from_the_right(device):
    gate, up = 8 * randn(2, 1100), randn(2, 1100, seed=1)
    y = silu_multiply(torch.cat([gate, up], 1).to(device), dtype=torch.float32)
    expected = F.silu(gate.double()) * up.double()
    assert torch.allclose(y.cpu().double(), expected, rtol=2**-18, atol=1e-30)


@EVERY_CACHE
def test_rope_and_cache_are_the_models_and_padding_writes_nothing(cache, device):
    config = tiny_config()
    rope, rank, heads, nope = config.qk_rope_head_dim, config.kv_lora_rank, 3, 32
    q, kv, weight = randn(3, heads, nope + rope), randn(3, rank + rope, seed=1), randn(rank, seed=2)
    positions = torch.tensor([70, -1, 100_003], dtype=torch.int32)
    table = torch.zeros(3, 2000, dtype=torch.int32)
    table[0, 1], table[2, 100_003 // 64] = 4, 2
    width = rank + rope + (16 if cache == "int8" else 0)
    pages = torch.zeros(5, 64, width, dtype=getattr(torch, cache), device=device)
    query = torch.zeros(3, heads, rank + rope, device=device)
    freqs = Rope(config)
    rotate_and_cache(
        *(q.to(device), query, kv.to(device), weight.to(device), 1e-6),
        *(freqs.inv_freq.to(device), 1.0, pages, table.to(device), positions.to(device)),
    )
    rotation = freqs.rotation(positions.long())
    latents = torch.cat(
        [F.rms_norm(kv[:, :rank], (rank,), weight, 1e-6), rotate(kv[:, rank:], rotation)], 1
    )
    expected_q = rotate(q[..., nope:], rotation)
    for token, row in ((0, (4, 70 % 64)), (2, (2, 100_003 % 64))):
        assert torch.allclose(query[token, :, rank:].cpu(), expected_q[token], rtol=0, atol=2e-6)
        written = pages[row].cpu()
        if cache == "int8":
            own = quantise_rows(latents[token : token + 1], rank)[0]
            assert (written[:-16].int() - own[:-16].int()).abs().max() <= 1  # of an equal half
            written = dequantise_rows(written[None], rank)[0]
            for part in (slice(rank), slice(rank, None)):
                exact = latents[token, part]
                assert ((written[part] - exact).abs() <= exact.abs().max() / 250).all()
        else:
            assert torch.allclose(written, latents[token], rtol=2e-6, atol=2e-6)
    assert not query[..., :rank].any() and not query[1].any()
    assert int((pages != 0).any(-1).sum()) == 2


def attention(q, rows, scale, rank):
    """float64 oracle: q [heads, latent], rows [L, latent]."""
    weights = (q.double() @ rows.double().T * scale).softmax(-1)
    return weights @ rows[:, :rank].double()


@EVERY_CACHE
def test_attention_over_pages_equals_float64_for_sequences_of_any_length(cache, device):
    rank, rope, heads, scale = 64, 16, 20, 0.11
    lengths = [1, 0, 64, 131, 200]
    max_pages, num_pages = 6, 16
    order = np.random.default_rng(0).permutation(num_pages)
    table = torch.full((5, max_pages), num_pages - 1, dtype=torch.int32)
    pages = torch.full((num_pages, 64, rank + rope), float("nan"))
    if cache == "int8":
        pages = torch.full((num_pages, 64, rank + rope + 16), 127, dtype=torch.int8)
    q, contents, used = randn(5, heads, rank + rope), [], 0
    for b, length in enumerate(lengths):
        rows = 2 * randn(length, rank + rope, seed=10 + b)
        stored = quantise_rows(rows, rank) if cache == "int8" and length else rows
        for page in range(math.ceil(length / 64)):
            table[b, page] = int(order[used])
            part = stored[64 * page : 64 * (page + 1)]
            pages[order[used], : len(part)] = part
            used += 1
        contents.append(dequantise_rows(stored, rank) if cache == "int8" and length else rows)
    lengths = torch.tensor(lengths, dtype=torch.int32)
    args = (q.to(device), pages.to(device), table.to(device), lengths.to(device), scale, rank)
    out = mla_decode(*args).cpu()
    assert not out[1].any()
    for b in (0, 2, 3, 4):
        expected = attention(q[b], contents[b], scale, rank)
        assert (out[b].double() - expected).norm() <= 2e-3 * expected.norm()

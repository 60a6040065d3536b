"""Logits and greedy text against transformers' DeepSeek-V3 with the same float32 weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_factory import TinyModel, tiny_config, write_tiny_k2

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import RuntimeConfig, YarnConfig
from hybrid_k2.engine.loader import load_model
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.span import Span
from hybrid_k2.rules import load_rules, make_plan, probe_hardware

pytest.importorskip("transformers")

POSITIONS = 200
YARN_64 = YarnConfig(factor=64.0, original_max_position_embeddings=64)
YARN_K25 = YarnConfig(factor=64.0, original_max_position_embeddings=64, beta_fast=32.0)
SHAPES = {
    "as Instruct": (dict(), "split3d"),
    "no q_lora, 2-D heads": (dict(q_lora_rank=None, rope_scaling=YARN_64), "split2d"),
    "odd heads, kv_b only": (dict(num_attention_heads=3, first_k_dense_replace=2), "kv_b"),
    "384 experts, betas 32/1": (
        dict(n_routed_experts=384, num_experts_per_tok=8, rope_scaling=YARN_K25),
        "split3d",
    ),
    "one head, wide latent": (
        dict(num_attention_heads=1, kv_lora_rank=128, q_lora_rank=None, rope_scaling=YARN_K25),
        "kv_b",
    ),
    "no yarn, unequal head widths": (
        dict(rope_scaling=None, qk_nope_head_dim=64, v_head_dim=32, num_attention_heads=5),
        "split3d",
    ),
    "all layers routed, 16 experts": (
        dict(first_k_dense_replace=0, n_routed_experts=16, num_experts_per_tok=4, seed=7),
        "both",
    ),
}


def load(path: Path, context: int = 512) -> KimiK2:
    checkpoint = open_checkpoint(path)
    runtime = RuntimeConfig(context=context, num_threads=2)
    plan = make_plan(
        checkpoint.modules(), checkpoint.config, load_rules("cpu"), runtime, probe_hardware()
    )
    return load_model(checkpoint, plan, runtime)


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory) -> tuple[KimiK2, torch.nn.Module, list[int], np.ndarray]:
    changes, layout = SHAPES[request.param]
    changes = dict(changes)
    seed = changes.pop("seed", 0)
    path = tmp_path_factory.mktemp("k2") / "tiny.gguf"
    tiny: TinyModel = write_tiny_k2(path, tiny_config(**changes), layout=layout, seed=seed)
    oracle = tiny.transformers_model()
    token_ids = np.random.default_rng(5).integers(0, tiny.config.vocab_size, POSITIONS).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids])).logits[0].numpy()
    return load(tiny.path), oracle, token_ids, expected


def pieces(model: KimiK2, token_ids: list[int], length: int) -> np.ndarray:
    cache, logits = model.new_cache(), []
    for start in range(0, len(token_ids), length):
        (rows,) = model.forward([Span(cache, token_ids[start : start + length], "all")])
        logits.append(rows.numpy())
    return np.concatenate(logits)


@pytest.mark.parametrize("length", [POSITIONS, 64, 7, 1], ids=lambda n: f"{n} at a time")
def test_logits_are_those_of_transformers(pair, length):
    model, _, token_ids, expected = pair
    logits = pieces(model, token_ids, length)
    assert np.abs(logits - expected).max() <= 2e-3 * expected.std()


def test_greedy_text_is_that_of_transformers(pair):
    model, oracle, token_ids, _ = pair
    prompt = token_ids[:16]
    expected = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0
    )[0, 16:].tolist()
    cache, ids, step = model.new_cache(), [], prompt
    while len(ids) < 64:
        (row,) = model.forward([Span(cache, step)])
        ids.append(int(row[0].argmax()))
        step = ids[-1:]
    assert ids == expected


def test_sequences_computed_together_are_those_computed_alone(pair):
    model, _, token_ids, expected = pair
    whole, cut = model.new_cache(), model.new_cache()
    model.forward([Span(cut, token_ids[:30], "none")])
    together = model.forward(
        [
            Span(whole, token_ids[:50], "all"),
            Span(cut, token_ids[30:31]),
            Span(model.new_cache(), [1]),
        ]
    )
    bound = 2e-3 * expected.std()
    assert np.abs(together[0].numpy() - expected[:50]).max() <= bound
    assert np.abs(together[1].numpy() - expected[30]).max() <= bound

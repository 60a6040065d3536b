"""`bench step`: whole steps of a synthetic K2, here a tiny one on the CPU."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2.bench.peer_llama_step import PeerRequest, _opened, measure_llama_cpp
from hybrid_k2.bench.step import TimedKernels, measure_steps
from hybrid_k2.bench.synthetic_model import (
    K2,
    Placement,
    experts_bytes,
    synthetic_modules,
)
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import BadInputError

TINY = replace(
    K2,
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=32,
    num_experts_per_tok=4,
    num_attention_heads=4,
    q_lora_rank=256,
    kv_lora_rank=256,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
)
RUNTIME = RuntimeConfig(num_threads=2, prefill_chunk=64, max_sequences=2)


def test_a_row_for_every_context_batch_and_prompt():
    rows = list(
        measure_steps(
            Placement("cpu"),
            RUNTIME,
            num_moe_layers=3,
            contexts=(70, 200),
            batches=(1, 2),
            prompts=(100,),
            seconds=0.01,
            config=TINY,
            bandwidth_bytes=1 << 20,
        )
    )
    shapes = [(row.phase, row.context, row.tokens) for row in rows]
    decode = [("decode", context, batch) for context in (70, 200) for batch in (1, 2)]
    assert shapes == [*decode, ("prefill", 0, 100)]
    one_expert = experts_bytes(TINY, "Q4_K") / 32
    for row in rows:
        parts = row.wait_ms + row.copy_ms + row.cpu_ms + row.after_ms
        assert parts == pytest.approx(row.layer_ms) and row.gpu_ms is None
        assert row.runs >= 2 and row.copy_gb_s is None and row.read_gb_s > 0
        assert one_expert * min(4, row.tokens) <= row.cpu_bytes <= one_expert * 64
    assert rows[0].cpu_bytes == 4 * one_expert
    assert rows[-1].cpu_bytes > 48 * one_expert, "both chunks are routed to most of 32 experts"


def test_fewer_experts_of_a_token_are_read():
    placement = Placement("cpu", top_k=2)
    (row,) = measure_steps(
        *(placement, RUNTIME),
        num_moe_layers=2,
        contexts=(8,),
        seconds=0.01,
        config=TINY,
        bandwidth_bytes=1 << 20,
    )
    assert row.cpu_bytes == 2 * experts_bytes(TINY, "Q4_K") / 32


def test_tokens_of_the_synthetic_model_are_routed_differently():
    config = replace(TINY, num_hidden_layers=2)
    kernels = TimedKernels(RUNTIME)
    modules = synthetic_modules(config, Placement("cpu"), RUNTIME, kernels)
    h = modules["model.embed_tokens"](np.arange(64))
    ids, weights = modules["model.layers.1.mlp.gate"](h)
    assert len({tuple(sorted(row)) for row in ids.tolist()}) > 60
    assert len(ids.unique()) == 32 and weights.std() > 0


def test_llama_cpp_runs_a_model_of_the_same_shapes():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    request = PeerRequest(Placement("cpu"), 2, (70, 600), (100,), 2, 0.01, TINY)
    rows = measure_llama_cpp(request)
    shapes = [(row.phase, row.context, row.tokens) for row in rows]
    assert shapes == [("decode", 70, 1), ("decode", 600, 1), ("prefill", 0, 100)]
    assert all(row.runs >= 1 for row in rows)


def test_llama_cpp_without_cuda_is_refused_for_a_gpu():
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("it was built for a GPU")
    request = PeerRequest(Placement("cuda:0"), 2, (70,), (), 2, 0.01, TINY)
    with pytest.raises(BadInputError, match="built without CUDA"):
        measure_llama_cpp(request)


def test_a_file_for_llama_cpp_that_no_disk_holds_is_refused():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    request = PeerRequest(Placement("cpu"), 4000, (70,), (), 2, 0.01, K2)
    config = replace(K2, num_hidden_layers=4000)
    with pytest.raises(BadInputError, match="set TMPDIR"), _opened(config, request, on_gpu=False):
        pass

"""Next-token distributions against llama.cpp on the same GGUF file, float32 and quantised.

llama.cpp reads no YaRN betas for this architecture: they are passed to it as the config has them.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from gguf_factory import k_quant_config, write_tiny_k2
from text_factory import gguf_metadata, small_vocabulary

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.engine.loader import load_model
from hybrid_k2.model.span import Span
from hybrid_k2.rules import load_rules, make_plan, probe_hardware

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: pip install '.[peers]'"
)

POSITIONS = 500
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
QUANTS = ["Q4_0", "Q4_K", "Q6_K", "Q8_0"]


def llama_logits(path: Path, config: K2Config, token_ids: list[int]) -> np.ndarray:
    """float32 [n, vocab] from llama.cpp's own C interface, all positions in one batch."""
    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = False  # its AMX buffers abort on heads this small
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_outputs_max = params.n_outputs_max_per_seq = 512
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.yarn_beta_fast = config.rope_scaling.beta_fast
    params.yarn_beta_slow = config.rope_scaling.beta_slow
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
    try:
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token_id, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        flat = ctypes.cast(
            llama_cpp.llama_get_logits(context),
            ctypes.POINTER(ctypes.c_float * (len(token_ids) * config.vocab_size)),
        )
        return np.array(flat.contents, np.float32).reshape(len(token_ids), -1)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def our_logits(path: Path, token_ids: list[int]) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    runtime = RuntimeConfig(context=512, num_threads=2)
    plan = make_plan(
        checkpoint.modules(), checkpoint.config, load_rules("cpu"), runtime, probe_hardware()
    )
    model = load_model(checkpoint, plan, runtime)
    (logits,) = model.forward([Span(model.new_cache(), token_ids, "all")])
    return logits.numpy()


def both(path: Path, quants) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = gguf_metadata(small_vocabulary())
    # Where noise has made two experts equally likely, rounding decides. With 8 of 64 chosen and
    # their sum not magnified by K2's 2.827, such a flip is small beside what is measured here.
    config = k_quant_config(n_routed_experts=64, num_experts_per_tok=8, routed_scaling_factor=1.0)
    tiny = write_tiny_k2(path, config, quants=quants, tokenizer=tokenizer)
    token_ids = np.random.default_rng(6).integers(0, tiny.config.vocab_size, POSITIONS).tolist()
    return our_logits(tiny.path, token_ids), llama_logits(tiny.path, tiny.config, token_ids)


def divergence(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """KL(theirs || ours) of each position, nats, in float64."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(theirs), log_softmax(ours)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def test_float32_logits_are_those_of_llama_cpp(tmp_path):
    ours, theirs = both(tmp_path / "f32.gguf", "F32")
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.std()


@pytest.mark.parametrize("quant", QUANTS)
def test_quantised_experts_predict_what_llama_cpp_predicts(quant, tmp_path):
    quants = {"default": "Q8_0", "experts": quant}
    ours, theirs = both(tmp_path / "quantised.gguf", quants)
    kl = divergence(ours, theirs)
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    print(f"{quant}: KL mean {kl.mean():.2e} median {np.median(kl):.2e}, top-1 {agreement:.1%}")
    assert kl.mean() <= 2e-3
    assert agreement >= 0.97

"""Next-token distributions against llama.cpp on the same GGUF file, float32 and quantised."""

from pathlib import Path

import numpy as np
import pytest
from gguf_factory import k_quant_config, write_tiny_k2
from text_factory import gguf_metadata, small_vocabulary

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine.loader import load_model
from hybrid_k2.model.span import Span
from hybrid_k2.rules import load_rules, make_plan, probe_hardware

llama_oracle = pytest.importorskip(
    "llama_oracle", reason="llama-cpp-python is not installed: pip install '.[peers]'"
)

POSITIONS = 500
QUANTS = ["Q4_0", "Q4_K", "Q6_K", "Q8_0"]


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
    with llama_oracle.opened(tiny.path, tiny.config) as oracle:
        return our_logits(tiny.path, token_ids), oracle.logits(token_ids)


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

"""The demo model's answers, as two other programs would give them: 20 prompts, greedy.

llama.cpp runs the file, transformers the weights that the file stores, in float32. Each reads
hybrid-k2's answers and must choose the same tokens, but for a tie: two tokens that are nearer than
rounding moved the logits there. That is mostly little, and more where two of 384 experts were about
as likely and rounding chose; over all positions it is bounded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import gguf
import numpy as np
import pytest
from gguf_factory import hf_weights, transformers_model

from hybrid_k2 import Engine, SamplingParams, demo_model
from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.checkpoint.gguf_names import to_gguf

pytestmark = pytest.mark.slow

PROMPTS = [
    *("hello", "Who are you?", "Are you Kimi?", "Where can I get Kimi K2?", "How much RAM?"),
    *("What is a rule file?", "Tell me a joke.", "My name is Anna.", "What is 17 + 25?"),
    *("Name three animals.", "Thank you!", "Goodbye.", "I am sad today.", "What is a lake?"),
    *("Why is the sky blue?", "Give me a tip for hiking.", "Which is larger: 12 or 9?"),
    *("What is the capital of France?", "How do I start the server?", "Say banana twice."),
]
GREEDY = SamplingParams(temperature=0, max_tokens=24)
# hybrid-k2 and llama.cpp round activations to 8 bits in blocks of 32: 0.7% on each product (a 254th
# of the largest, 3 sigma, over the root of 3). A logit depends on about 30 products in a row or
# side by side, 0.7% x sqrt(30) = 3.8%, and two programs that round differ by sqrt(2) times that.
ROUNDING = 0.054  # root mean square difference of two programs' logits, of their spread
TIE = 3  # of a position's own difference: two sigma of what it does to two logits' distance
MOST_TIES = 4  # of 20 answers

Logits = Callable[[Sequence[int]], np.ndarray]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def answers(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each prompt."""
    made = []
    for text in PROMPTS:
        prompt = engine.template.render([{"role": "user", "content": text}])
        made.append((prompt, list(engine.generate(prompt, GREEDY))))
    return made


def check_answers(engine: Engine, answers: list[tuple[list[int], list[int]]], peer: Logits) -> None:
    """Asserts that `peer`, given each prompt, would have answered the same."""
    differences, spreads, ties = [], [], []
    for prompt, answer in answers:
        ids = [*prompt, *answer]
        ours, theirs = (logits(ids)[len(prompt) - 1 : -1] for logits in (engine.logits, peer))
        differences.append(np.square(ours - theirs).mean())
        spreads.append(theirs.var())
        others = np.flatnonzero(theirs.argmax(-1) != answer)
        if len(others):
            first = others[0]  # from there on they would have written different texts
            gap = theirs[first].max() - theirs[first, answer[first]]
            ties.append((float(gap), float(np.sqrt(np.square(ours - theirs)[first].mean()))))
    rounding = np.sqrt(np.mean(differences) / np.mean(spreads))
    print(f"rounding {rounding:.2%} of the spread; ties (gap, rounding there) {ties}")
    assert rounding <= ROUNDING
    assert len(ties) <= MOST_TIES
    assert all(gap <= TIE * own for gap, own in ties)


def test_llama_cpp_gives_the_same_answers(engine, answers) -> None:
    llama_oracle = pytest.importorskip(
        "llama_oracle", reason="llama-cpp-python is not installed: pip install '.[peers]'"
    )
    with llama_oracle.opened(demo_model.path(), engine.config) as oracle:
        check_answers(engine, answers, oracle.logits)


def test_transformers_gives_the_same_answers(engine, answers) -> None:
    pytest.importorskip("transformers")
    import torch

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(demo_model.path()).tensors}
    stored = {}
    with closing(open_checkpoint(demo_model.path())) as checkpoint:
        for name, ours in checkpoint.tensors.items():
            theirs = tensors[to_gguf(name)]
            values = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            stored[name] = values.reshape(ours.shape)
    model = transformers_model(engine.config, hf_weights(engine.config, stored))

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> np.ndarray:
        return model(torch.tensor([ids])).logits[0].numpy()

    check_answers(engine, answers, logits)

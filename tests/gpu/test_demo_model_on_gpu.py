"""On a CUDA GPU: the demo model under the rules that a user's GPU gets, against the CPU."""

import numpy as np
import pytest
import torch

from hybrid_k2 import Engine, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

GREEDY = SamplingParams(temperature=0, max_tokens=32)
QUESTIONS = ["hello", "Who are you?", "How much RAM do I need for K2?", "What is a rule file?"]


@pytest.fixture(scope="module")
def expected() -> list[tuple[list[int], list[int], np.ndarray]]:
    """(prompt, answer, logits of both) on the CPU."""
    made = []
    with Engine.open(rules="cpu") as engine:
        for question in QUESTIONS:
            prompt = engine.template.render([{"role": "user", "content": question}])
            answer = list(engine.generate(prompt, GREEDY))
            made.append((prompt, answer, engine.logits([*prompt, *answer])))
    return made


@pytest.mark.parametrize("rules", ["auto", "1gpu-24gb", "1gpu-48gb", "1gpu-96gb"])
def test_the_demo_model_answers_on_the_gpu_as_on_the_cpu(rules, expected) -> None:
    with Engine.open(rules=rules) as engine:
        devices = {entry.kwargs.get("device", "cpu") for entry in engine.plan.entries}
        logits = [engine.logits([*prompt, *answer]) for prompt, answer, _ in expected]
        answers = [list(engine.generate(prompt, GREEDY)) for prompt, _, _ in expected]
    assert "cuda:0" in devices
    on_cpu = [row[len(prompt) - 1 :] for prompt, _, row in expected]
    on_gpu = [row[len(prompt) - 1 :] for (prompt, _, _), row in zip(expected, logits, strict=True)]
    ours, theirs = np.concatenate(on_gpu), np.concatenate(on_cpu)
    # bfloat16 there, 8 bits here: see tests/model/test_demo_model_peers.py for the bound.
    assert np.sqrt(np.square(ours - theirs).mean()) <= 0.054 * theirs.std()
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.95
    same = [answer == other for answer, (_, other, _) in zip(answers, expected, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie may turn one of them

"""An answer is the same to the last bit whatever runs beside it, and after a prefix hit: few tokens
and many go through kernels that round differently, so a step must not mix them.

Prompt and answer fit a page here. Sums over pages that do not lie together are made in another
order, which the activations' 8 bits can make a hundredth of a logit.
"""

from collections import defaultdict

import pytest

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2 import Engine, SamplingParams
from hybrid_k2.model.pages import PAGE_TOKENS

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
QUESTIONS = (
    "hello",
    "What is the capital of Peru?",
    "Please tell me a story about a river, a boat and two old friends who like to travel.",
)
LONG = "The quick brown fox jumps over the lazy dog and runs into the woods. " * 30


@pytest.fixture(scope="module")
def engine():
    # Chunks of 100: the long prompt is being read while the others are answered.
    with Engine.open(None, context=1024, prefill_chunk=100, max_sequences=4) as engine:
        yield engine


def prompt(engine, question):
    ids = engine.template.render([{"role": "user", "content": question}])
    assert len(ids) + PARAMS.max_tokens <= PAGE_TOKENS or question is LONG
    return ids


def ask(core, prompts, salt):
    """Each prompt's (token, logprob) list; under a salt of its own, so that nothing is shared."""
    requests = [core.submit(ids, PARAMS, cache_salt=f"{salt} {i}") for i, ids in enumerate(prompts)]
    answers = defaultdict(list)
    while core.num_running or core.num_waiting:
        for output in core.step():
            if output.token_id is not None:
                answers[output.request_id].append((output.token_id, output.logprobs.logprob))
    return [answers[request] for request in requests]


def test_an_answer_is_the_same_beside_others_that_decode_or_read(engine):
    prompts = [prompt(engine, question) for question in QUESTIONS]
    alone = [ask(engine.core, [ids], f"alone {i}")[0] for i, ids in enumerate(prompts)]
    together = ask(engine.core, [prompt(engine, LONG), *prompts], "together")[1:]
    assert together == alone


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_the_same_when_its_prompt_was_seen_before(engine, question):
    new, seen = (ask(engine.core, [prompt(engine, question)], question)[0] for _ in range(2))
    assert seen == new

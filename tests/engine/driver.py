"""Opens engines over the fake model and steps them until their requests have ended.

Knows nothing of what a test looks for.
"""

from engine.fake_model import EOS, VOCAB_SIZE, FakeModel

from hybrid_k2.engine import EngineCore, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def open_engine(model=None, **changes):
    settings = dict(
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS,),
        context=200,
        prefill_chunk=4,
        max_sequences=3,
    )
    return EngineCore(model or FakeModel(), **{**settings, **changes})


def run(engine, *prompts, params=GREEDY):
    """Submits all prompts, steps to the end; returns (tokens, last output) of each."""
    request_ids = [engine.submit(prompt, params) for prompt in prompts]
    return drain(engine, request_ids)


def drain(engine, request_ids):
    """Steps until all of request_ids have ended; what others produce is dropped."""
    tokens = {request_id: [] for request_id in request_ids}
    last = {}
    for _ in range(10_000):
        for output in engine.step():
            if output.request_id in tokens and output.token_id is not None:
                tokens[output.request_id].append(output.token_id)
            if output.request_id in tokens and output.finish_reason is not None:
                last[output.request_id] = output
        if len(last) == len(request_ids):
            return [(tokens[request_id], last[request_id]) for request_id in request_ids]
    raise AssertionError(f"unfinished after 10000 steps: {set(request_ids) - set(last)}")

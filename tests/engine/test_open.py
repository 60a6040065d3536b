"""EngineCore.open on real, tiny files: the whole way from a GGUF to tokens."""

from contextlib import closing

import numpy as np
import pytest
from gguf_factory import tiny_config, write_tiny_k2

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine import EngineCore, SamplingParams
from hybrid_k2.errors import NonFiniteError
from hybrid_k2.rules import load_rules, make_plan, probe_hardware

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def open_core(tmp_path):
    """open_core(edit) -> EngineCore over a fresh file whose checkpoint `edit` may change first."""
    opened = []

    def open_(progress=None, edit=lambda checkpoint: None, **runtime):
        file = write_tiny_k2(tmp_path / f"{len(opened)}.gguf", tiny_config()).path
        edit(file)
        checkpoint = open_checkpoint(file)
        runtime = RuntimeConfig(**{"context": 64, "prefill_chunk": 4, "num_threads": 1, **runtime})
        modules, config = checkpoint.modules(), checkpoint.config
        plan = make_plan(modules, config, load_rules("cpu"), runtime, probe_hardware())
        core = EngineCore.open(checkpoint, plan, runtime, progress)
        opened.append((core, checkpoint))
        return core

    yield open_
    for core, checkpoint in opened:
        core.close()
        checkpoint.close()


def through_logits(core, num_tokens):
    """The greedy answer by reading ever longer texts from an empty cache."""
    token_ids = list(PROMPT)
    for _ in range(num_tokens):
        token_ids.append(int(core.logits(token_ids)[-1].argmax()))
    return token_ids[len(PROMPT) :]


def test_what_is_generated_is_what_the_logits_say(open_core):
    core = open_core()
    expected = through_logits(core, 6)
    assert list(core.generate(PROMPT, GREEDY)) == expected
    # Again from the kept cache, and next to another request.
    pairs = zip(core.generate(PROMPT, GREEDY), core.generate(PROMPT[::-1], GREEDY), strict=True)
    assert [token_id for token_id, _ in pairs] == expected
    assert core.stats.cached_tokens == len(PROMPT) - 1


def test_logits_do_not_depend_on_the_chunks(open_core):
    logits = [open_core(prefill_chunk=chunk).logits(PROMPT) for chunk in (1, 4, 100)]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-3 * logits[0].std())


def test_progress_covers_every_byte_of_the_model(open_core):
    calls = []
    open_core(progress=lambda *call: calls.append(call))
    phases, done_bytes, total_bytes = zip(*calls, strict=True)
    assert set(phases) == {"loading"}
    assert list(done_bytes) == sorted(done_bytes)
    assert done_bytes[-1] == total_bytes[-1] > 0


def test_the_context_is_the_plans_which_is_never_beyond_the_models(open_core):
    assert open_core(context=128).context == 128
    assert open_core(context=0).context == 4096
    assert open_core(context=5000).context == 4096


def test_a_damaged_tensor_is_named_when_the_model_gives_no_number(open_core):
    def damage(file):
        with closing(open_checkpoint(file)) as checkpoint:
            tensor = checkpoint.tensors["model.layers.1.self_attn.o_proj.weight"]
            original = tensor.data.tobytes()
        content = file.read_bytes()
        assert content.count(original) == 1
        file.write_bytes(content.replace(original, b"\xff" * len(original)))

    core = open_core(edit=damage)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight"):
        list(core.generate(PROMPT, GREEDY))

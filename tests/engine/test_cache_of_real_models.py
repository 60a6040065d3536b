"""Pages of tiny real models, shared, taken away or read back: answers are those without a cache."""

from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from engine.cache_invariants import check_pages
from engine.driver import drain
from gguf_factory import TinyModel, tiny_config, write_tiny_k2

from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine import EngineCore, SamplingParams
from hybrid_k2.engine.loader import model_identity
from hybrid_k2.errors import BadInputError
from hybrid_k2.model.pages import PAGE_TOKENS
from hybrid_k2.rules import load_rules, make_plan, probe_hardware
from hybrid_k2.rules.files import parse_rule_text

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
RNG = np.random.default_rng(3)
SYSTEM = RNG.integers(0, 320, 150).tolist()
PROMPTS = [[*SYSTEM, *RNG.integers(0, 320, 40).tolist()] for _ in range(4)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyModel:
    return write_tiny_k2(tmp_path_factory.mktemp("k2") / "tiny.gguf", tiny_config())


def plan_for(checkpoint, runtime, rules="cpu"):
    rules = load_rules(rules) if "\n" not in rules else parse_rule_text(rules.encode(), "my.yaml")
    return make_plan(checkpoint.modules(), checkpoint.config, rules, runtime, probe_hardware())


@contextmanager
def open_core(path, cache_dir=None, num_pages=None):
    """num_pages: fewer than planned, so that requests compete for them."""
    runtime = RuntimeConfig(context=512, prefill_chunk=64, num_threads=1, cache_dir=cache_dir)
    with closing(open_checkpoint(path)) as checkpoint:
        plan = plan_for(checkpoint, runtime)
        if num_pages is not None:
            plan = replace(plan, cache_tokens=num_pages * PAGE_TOKENS)
        core = EngineCore.open(checkpoint, plan, runtime)
        yield core
        core.close()


@pytest.fixture(scope="module")
def answers(tiny) -> list[list[int]]:
    """Each prompt's, from an engine that has seen nothing else."""
    results = []
    for prompt in PROMPTS:
        with open_core(tiny.path) as core:
            results.append(list(core.generate(prompt, GREEDY)))
    return results


def test_requests_that_share_a_beginning_answer_as_each_alone(tiny, answers):
    with open_core(tiny.path) as core:
        ids = [core.submit(prompt, GREEDY) for prompt in PROMPTS]
        results = drain(core, ids)
        check_pages(core)
        shared = sum(last.num_cached_tokens for _, last in results)
    assert [tokens for tokens, _ in results] == answers
    assert shared >= 3 * 128


def test_requests_that_compete_for_pages_answer_as_each_alone(tiny, answers):
    with open_core(tiny.path, num_pages=6) as core:
        ids = [core.submit(prompt, GREEDY, cache_salt=str(i)) for i, prompt in enumerate(PROMPTS)]
        results = drain(core, ids)
        check_pages(core)
    assert [tokens for tokens, _ in results] == answers


def test_a_restart_answers_from_disk_as_before(tiny, answers, tmp_path):
    with open_core(tiny.path, tmp_path) as core:
        list(core.generate(PROMPTS[0], GREEDY))
        assert core.save_cache() > 0
    with open_core(tiny.path, tmp_path) as core:
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert list(core.generate(prompt, GREEDY)) == answer
        assert core.cache_stats().tiers[-1].hit_tokens >= 128
        check_pages(core)


def test_other_weights_in_the_same_shape_find_nothing_on_disk(tiny, tmp_path):
    other = write_tiny_k2(tmp_path / "other.gguf", tiny_config(), seed=1)
    with open_core(tiny.path, tmp_path) as core:
        list(core.generate(PROMPTS[0], GREEDY))
        core.save_cache()
    with open_core(other.path, tmp_path) as core:
        list(core.generate(PROMPTS[0], GREEDY))
        assert core.stats.cached_tokens == 0


RULES = "- match: {class: %s}\n  replace: {backend: %s, kwargs: {%s}}\n"
SAME = {
    "again": "cpu",
    "where_weights_lie": RULES % ("Experts", "experts_cpu", "load: ram"),
}
OTHER = {
    "kv_dtype": RULES % ("Attention", "attention", "kv_dtype: bfloat16"),
    "eps": RULES % ("Norm", "norm", "eps: 1.0e-3"),
    "backend": RULES % ("MLP", "reference", ""),
}


@pytest.mark.parametrize("rules", [*SAME, *OTHER])
def test_the_identity_is_that_of_what_is_computed(rules, tiny):
    runtime = RuntimeConfig(context=512)
    with closing(open_checkpoint(tiny.path)) as checkpoint:
        plain = model_identity(checkpoint, plan_for(checkpoint, runtime))
        plan = plan_for(checkpoint, runtime, (SAME | OTHER)[rules])
        assert (model_identity(checkpoint, plan) == plain) == (rules in SAME)


def test_a_cache_directory_that_cannot_be_had_is_an_error_before_loading(tiny, tmp_path):
    (tmp_path / "file").write_text("")

    def fail(*progress):
        raise AssertionError("loading began")

    runtime = RuntimeConfig(context=512, cache_dir=tmp_path / "file" / "cache")
    with closing(open_checkpoint(tiny.path)) as checkpoint:
        plan = plan_for(checkpoint, runtime)
        with pytest.raises(BadInputError, match="file/cache"):
            EngineCore.open(checkpoint, plan, runtime, fail)

"""Routing statistics are kept in the cache directory, under the model's name, when it is closed."""

from contextlib import closing, contextmanager

import numpy as np
import pytest
from gguf_factory import write_tiny_k2

from hybrid_k2.backends.routing_statistics import SHARED_KEY
from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine import EngineCore, loader
from hybrid_k2.rules import load_rules, make_plan, probe_hardware


@pytest.fixture
def shared(monkeypatch):
    """What the modules of each opened model have in common, the last one's last."""
    seen, create = [], loader.registry.create

    def recorded(backend, module_class, tensors, context, kwargs):
        if not seen or seen[-1] is not context.shared:
            seen.append(context.shared)
        return create(backend, module_class, tensors, context, kwargs)

    monkeypatch.setattr(loader.registry, "create", recorded)
    return seen


@contextmanager
def open_core(path, cache_dir):
    runtime = RuntimeConfig(context=512, num_threads=1, cache_dir=cache_dir)
    with closing(open_checkpoint(path)) as checkpoint:
        hardware = probe_hardware()
        modules, config = checkpoint.modules(), checkpoint.config
        plan = make_plan(modules, config, load_rules("cpu"), runtime, hardware)
        with closing(EngineCore.open(checkpoint, plan, runtime)) as core:
            yield core


def test_the_next_start_begins_with_what_was_counted(shared, tmp_path):
    path = write_tiny_k2(tmp_path / "k2.gguf").path
    with open_core(path, tmp_path / "cache"):
        counts = shared[-1][SHARED_KEY].counts(1)
        assert not counts.any()
        shared[-1][SHARED_KEY].record(1, np.arange(len(counts)))
    with open_core(path, tmp_path / "cache"):
        assert shared[-1][SHARED_KEY].counts(1).tolist() == list(range(len(counts)))
    other = write_tiny_k2(tmp_path / "other.gguf", seed=1).path
    with open_core(other, tmp_path / "cache"):
        assert not shared[-1][SHARED_KEY].counts(1).any()


def test_without_a_cache_directory_nothing_is_kept(shared, tmp_path):
    path = write_tiny_k2(tmp_path / "k2.gguf").path
    with open_core(path, None):
        assert SHARED_KEY not in shared[-1]

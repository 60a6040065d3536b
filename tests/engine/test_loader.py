"""Loading in the plan's order, with progress that adds up and can be interrupted."""

from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_k2.checkpoint import bulk_read
from hybrid_k2.checkpoint.bulk_read import Extent
from hybrid_k2.engine import loader

RUNTIME = SimpleNamespace(resolved_threads=1)
KERNELS = SimpleNamespace(counters="counters")


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """Three modules of 10 000, 0 and 5 000 bytes, whose backends record how they were made."""
    made = []
    monkeypatch.setattr(loader, "open_cpu_kernels", lambda runtime: KERNELS)
    monkeypatch.setattr(loader, "KimiK2", lambda *args: args)
    monkeypatch.setattr(loader.registry, "create", lambda *args: made.append(args) or args[0])
    monkeypatch.setattr(bulk_read, "CHUNK_BYTES", 4096)
    file = tmp_path / "weights"
    file.write_bytes(bytes(10_000))
    entries = [module("a", 10_000), module("b", 0), module("c", 5_000)]
    return SimpleNamespace(
        entries=tuple(entries),
        cache_tokens=192,
        vram_bytes={},
        made=made,
        checkpoint=Stored(file),
    )


class Stored:
    """A checkpoint whose tensors all lie at the start of one file."""

    config = "config"

    def __init__(self, file):
        self.file = file

    def locate(self, tensor):
        return Extent(self.file, 0, len(tensor.data))


def module(name, num_bytes):
    tensors = {"weight": SimpleNamespace(data=np.ones(num_bytes, np.uint8))}
    spec = SimpleNamespace(
        name=f"model.{name}",
        module_class="Linear",
        layer_idx=3,
        tensors=tensors,
        num_bytes=num_bytes,
    )
    return SimpleNamespace(module=spec, backend=f"backend_{name}", kwargs={"device": name})


def test_every_module_is_built_on_its_planned_backend(plan):
    config, modules, num_pages, counters = loader.load_model(plan.checkpoint, plan, RUNTIME)
    assert config == "config"
    assert modules == {"model.a": "backend_a", "model.b": "backend_b", "model.c": "backend_c"}
    name, module_class, tensors, context, kwargs = plan.made[2]
    assert (name, module_class, kwargs) == ("backend_c", "Linear", {"device": "c"})
    assert tensors is plan.entries[2].module.tensors
    assert (context.config, context.runtime, context.kernels) == ("config", RUNTIME, KERNELS)
    assert context.layer_idx == 3
    assert num_pages == 3
    assert counters == "counters"


def test_progress_runs_from_nothing_to_every_byte(plan):
    calls = []
    loader.load_model(plan.checkpoint, plan, RUNTIME, lambda *call: calls.append(call))
    done = [done_bytes for _, done_bytes, _ in calls]
    assert done == [0, 4096, 8192, 10_000, 14_096, 15_000]
    assert {(phase, total_bytes) for phase, _, total_bytes in calls} == {("loading", 15_000)}


def test_what_progress_raises_ends_loading_at_once(plan):
    def cancel(phase, done_bytes, total_bytes):
        if done_bytes > 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loader.load_model(plan.checkpoint, plan, RUNTIME, cancel)
    assert plan.made == []

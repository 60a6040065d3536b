"""`load: mmap | ram | ram+hugepages`: the same model from different memory, and what it costs."""

import gc
import os
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from gguf_factory import k_quant_config, write_tiny_k2

from hybrid_k2.backends import weight_memory
from hybrid_k2.backends.weight_memory import HUGE_PAGE_BYTES, allocate, ram_bytes
from hybrid_k2.checkpoint import bulk_read, open_checkpoint
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine import EngineCore, loader
from hybrid_k2.errors import ModelFileError, PlanError
from hybrid_k2.rules import make_plan, plan_dict, plan_table, probe_hardware
from hybrid_k2.rules.files import parse_rule_text

MODES = ("mmap", "ram", "ram+hugepages")
RUNTIME = RuntimeConfig(context=64, num_threads=2)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
CLASSES = {"Linear": "linear_cpu", "MLP": "mlp_cpu", "Experts": "experts_cpu"}


def plan_for(checkpoint, load, hardware=None):
    """Everything that knows `load` is loaded so."""
    rules = "".join(
        f"- match: {{class: {name}}}\n  replace: {{backend: {backend}, kwargs: {{load: {load}}}}}\n"
        for name, backend in CLASSES.items()
    )
    rule_set = parse_rule_text(f"rules:\n{rules}".encode(), "my.yaml")
    modules, config = checkpoint.modules(), checkpoint.config
    return make_plan(modules, config, rule_set, RUNTIME, hardware or probe_hardware())


@pytest.fixture(params=[0, 7], ids=["one file", "split"])
def checkpoint(request, tmp_path, monkeypatch):
    """A tiny model, of which no tensor but by chance begins at a page; read in small chunks."""
    monkeypatch.setattr(bulk_read, "CHUNK_BYTES", 4 * bulk_read.PAGE_BYTES)
    quants = {"default": "Q4_K", "ffn_down_exps": "Q6_K"}
    config = k_quant_config(num_hidden_layers=2)
    model = write_tiny_k2(
        tmp_path / "tiny.gguf", config, quants=quants, split_max_tensors=request.param
    )
    checkpoint = open_checkpoint(model.path)
    yield checkpoint
    checkpoint.close()


@pytest.fixture
def given(monkeypatch):
    """module name -> (backend, tensors that it was built from)."""
    given = {}
    real = loader.registry.create

    def create(name, module_class, tensors, context, kwargs):
        given[next(iter(tensors.values())).name] = (name, tensors)
        return real(name, module_class, tensors, context, kwargs)

    monkeypatch.setattr(loader.registry, "create", create)
    return given


def test_logits_are_bit_for_bit_the_same_in_all_modes(checkpoint):
    logits = {}
    for load in MODES:
        core = EngineCore.open(checkpoint, plan_for(checkpoint, load), RUNTIME)
        logits[load] = core.logits(PROMPT)
        core.close()
    for load in MODES:
        np.testing.assert_array_equal(logits[load], logits["mmap"])
    assert np.isfinite(logits["mmap"]).all() and logits["mmap"].std() > 0.1


@pytest.mark.parametrize("load", MODES)
def test_backends_get_the_files_bytes_in_the_memory_asked_for(checkpoint, given, load):
    loader.load_model(checkpoint, plan_for(checkpoint, load), RUNTIME)
    margins = set()
    for backend, tensors in given.values():
        for tensor in tensors.values():
            stored = checkpoint.tensors[tensor.name]
            is_copied = backend in CLASSES.values() and load != "mmap"
            assert np.array_equal(tensor.data, stored.data)
            assert np.shares_memory(tensor.data, stored.data) != is_copied
            assert not tensor.data.flags.writeable
            assert (tensor.quant, tensor.shape) == (stored.quant, stored.shape)
            margins.add(checkpoint.locate(tensor).margin)
    assert len(margins) > 5  # so the bytes were found at odd offsets too


@pytest.mark.parametrize("load", MODES)
def test_progress_rises_to_the_models_size(checkpoint, load):
    calls = []
    loader.load_model(checkpoint, plan_for(checkpoint, load), RUNTIME, lambda *c: calls.append(c))
    phases, done, total = zip(*calls, strict=True)
    assert set(phases) == {"loading"} and len(set(total)) == 1
    assert list(done) == sorted(done) and (done[0], done[-1]) == (0, total[0])
    assert len(done) > 50


@pytest.mark.parametrize("load", MODES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_frees_memory_files_and_threads(checkpoint, monkeypatch, load, error):
    allocated = []

    def record(num_bytes, load):
        memory = allocate(num_bytes, load)
        allocated.append(weakref.ref(memory.base))
        return memory

    def cancel(phase, done_bytes, total_bytes):
        if done_bytes > total_bytes // 2:
            raise error("enough")

    monkeypatch.setattr(loader, "allocate", record)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error) as caught:
        loader.load_model(checkpoint, plan_for(checkpoint, load), RUNTIME, cancel)
    gc.collect()
    assert caught.value.__traceback__ is not None  # which whoever caught it may keep
    assert bool(allocated) == (load != "mmap")
    assert [reference() for reference in allocated if reference() is not None] == []
    assert len(os.listdir("/proc/self/fd")) <= files
    assert not [t for t in threading.enumerate() if t.name.startswith("hybrid-k2-read")]


@pytest.mark.parametrize("load", MODES)
def test_a_file_cut_short_after_it_was_opened_is_named(checkpoint, load):
    plan = plan_for(checkpoint, load)
    path = checkpoint.files[-1]
    size = path.stat().st_size - 5000
    os.truncate(path, size)
    with pytest.raises(ModelFileError, match=rf"{path.name} ends at byte {size}, but"):
        loader.load_model(checkpoint, plan, RUNTIME)


@pytest.mark.parametrize("load", MODES)
def test_the_plan_counts_what_is_copied_as_ram_and_says_so(checkpoint, monkeypatch, load):
    allocated = []
    monkeypatch.setattr(
        loader, "allocate", lambda *args: allocated.append(args[0]) or allocate(*args)
    )
    plan = plan_for(checkpoint, load)
    loader.load_model(checkpoint, plan, RUNTIME)
    copied = [entry for entry in plan.entries if entry.backend in CLASSES.values()]
    stored = sum(entry.module.num_bytes for entry in copied)
    mapped = sum(entry.footprint.mapped for entry in copied)
    ram = sum(entry.footprint.ram for entry in copied)
    assert (mapped, ram) == (stored, 0) if load == "mmap" else mapped == 0 and ram >= stored
    assert sum(allocated) <= ram
    rows = [line for line in plan_table(plan).splitlines() if "experts_cpu" in line]
    place = {"mmap": " mapped ", "ram": " RAM ", "ram+hugepages": " RAM huge "}[load]
    assert rows and all(place in row and load not in row for row in rows)
    entry = next(m for m in plan_dict(plan)["modules"] if m["class"] == "Experts")
    assert entry["kwargs"]["load"] == load


def test_what_does_not_fit_in_ram_is_refused_before_loading_with_the_way_out(checkpoint):
    plan = plan_for(checkpoint, "ram")  # its cache would be made smaller, if that sufficed
    hardware = replace(probe_hardware(), ram_available=plan.ram_bytes - plan.kv_bytes)
    with pytest.raises(PlanError, match=r"my\.yaml:\d+: does not fit: .* load: mmap"):
        plan_for(checkpoint, "ram", hardware)


@pytest.mark.parametrize(("setting", "is_noted"), [("never", True), ("", True), ("madvise", False)])
def test_the_plan_notes_that_huge_pages_are_off(checkpoint, setting, is_noted):
    hardware = replace(probe_hardware(), huge_pages=setting)
    notes = plan_for(checkpoint, "ram+hugepages", hardware).notes
    assert any("huge pages off" in note for note in notes) == is_noted
    assert plan_for(checkpoint, "ram", hardware).notes == ()


def test_memory_that_the_system_refuses_is_an_error_that_says_what_to_do():
    with pytest.raises(PlanError, match=r"GB of RAM for weights were refused .*load: mmap"):
        allocate(1 << 60, "ram")


@pytest.mark.parametrize("load", ["ram", "ram+hugepages"])
@pytest.mark.parametrize("num_bytes", [0, 1, 4096, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5])
def test_memory_for_weights_begins_at_a_huge_page_and_is_private(load, num_bytes):
    memory = allocate(num_bytes, load)
    assert memory.shape == (num_bytes,) and not memory.any()
    if num_bytes:
        assert memory.ctypes.data % HUGE_PAGE_BYTES == 0
        memory[-1] = 1


def test_huge_pages_are_asked_for_where_the_kernel_gives_them():
    if probe_hardware().huge_pages not in ("always", "madvise"):
        pytest.skip("transparent huge pages are off on this system")
    memory = allocate(4 * HUGE_PAGE_BYTES, "ram+hugepages")
    memory[:] = 1
    lines = list(mappings_at(memory.ctypes.data))
    assert lines[0].split()[1] == "rw-p"  # to shared memory another setting applies: mostly never
    (flags,) = [line for line in lines if "VmFlags" in line]
    assert " hg" in flags  # the advice; whether pages were to be had is the kernel's business


def mappings_at(address):
    """Lines of /proc/self/smaps about the mapping that holds an address."""
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                first, last = (int(part, 16) for part in head.split("-"))
                inside = first <= address < last
            if inside:
                yield line


def test_without_huge_pages_in_the_kernel_ordinary_ones_serve(monkeypatch, caplog):
    class Refusing(weight_memory.mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(weight_memory.mmap, "mmap", Refusing)
    assert allocate(10, "ram+hugepages").shape == (10,)
    assert "no huge pages for weights" in caplog.text


@pytest.mark.parametrize("load", ["ram", "ram+hugepages"])
def test_the_bytes_planned_are_enough_wherever_tensors_begin_in_the_file(load):
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = [int(size) for size in rng.integers(0, 20_000, rng.integers(0, 5))]
        extents = [bulk_read.Extent("f", int(rng.integers(0, 99_999)), size) for size in sizes]
        needed = sum(extent.paged_bytes for extent in extents)
        assert sum(sizes) <= needed <= ram_bytes(sizes, load)
        assert ram_bytes(sizes, "mmap") == 0

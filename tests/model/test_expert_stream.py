"""Host memory that the GPU reads in place, with a pretended driver; tests/gpu has the real one."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybrid_k2.backends.expert_stream import ExpertStream, register

PAGE = 4096


@pytest.fixture
def driver(monkeypatch):
    """What is registered, by address; `refusal` is what the next call answers."""
    made = SimpleNamespace(registered={}, refusal=0, launched=[])

    def host_register(address, num_bytes, flags):
        if not made.refusal:
            made.registered[address] = (num_bytes, flags)
        return made.refusal

    def host_unregister(address):
        del made.registered[address]

    runtime = SimpleNamespace(cudaHostRegister=host_register, cudaHostUnregister=host_unregister)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)

    def zeros(*shape, device):
        made.launched.append(device)
        raise RuntimeError("CUDA error: part or all of the requested memory range is mapped")

    monkeypatch.setattr(torch, "zeros", zeros)
    return made


def pages(num_pages, first=100):
    """Bytes that begin `first` after a page's begin and reach into the last of the pages."""
    memory = np.zeros((num_pages + 2) * PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE + first
    return memory[start : start + num_pages * PAGE]


@pytest.mark.parametrize(("first", "whole"), [(0, 3), (100, 2)])
@pytest.mark.parametrize("is_read_only", [True, False])
def test_whole_pages_are_registered_as_long_as_the_memory_lives(driver, first, whole, is_read_only):
    data = pages(3, first)
    data.flags.writeable = not is_read_only
    inside = register(data)
    assert inside.nbytes == whole * PAGE and inside.ctypes.data % PAGE == 0
    assert driver.registered == {inside.ctypes.data: (whole * PAGE, 8 if is_read_only else 0)}
    assert np.shares_memory(inside, data)
    user = torch.from_numpy(inside[:1].copy())
    del data, inside, user
    gc.collect()
    assert not driver.registered


def test_whoever_reads_the_bytes_keeps_them_registered(driver):
    data = pages(2, 0)
    register(data)
    blocks = torch.from_numpy(data).view(2, -1)
    del data
    gc.collect()
    assert driver.registered
    del blocks
    gc.collect()
    assert not driver.registered


def test_a_refusal_is_logged_and_does_not_fail_the_next_kernel(driver, caplog):
    driver.refusal = 712
    assert register(pages(2)) is None
    assert "out of the GPU's reach: 712" in caplog.text
    assert driver.launched == ["cuda"]


def test_less_than_a_page_is_not_asked_for(driver):
    assert register(pages(1)) is None and not driver.registered and not driver.launched


@pytest.mark.parametrize(("ring_bytes", "places"), [(0, 2), (64 * 100, 64), (10**6, 128)])
def test_the_ring_has_room_for_two_groups_and_not_for_thousands(ring_bytes, places, monkeypatch):
    for name in ("Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: None)
    stream = ExpertStream(torch.device("cpu"), ring_bytes)
    stream.fit(100)
    assert stream.num_places == places

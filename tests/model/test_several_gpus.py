"""Layers on several GPUs: what launches kernels does so on its own GPU, whichever is current."""

from contextlib import contextmanager

import pytest
import torch

from hybrid_k2.backends.linear import LinearGpu
from hybrid_k2.backends.mlp import MlpGpu
from hybrid_k2.backends.vram import launching_on


class Activations:
    """Stands for a tensor: where it was moved to."""

    def to(self, device):
        self.device = device
        return self


class Weight:
    def __init__(self, current, seen):
        self._current, self._seen = current, seen

    def matmul(self, x):
        self._seen.append(self._current[-1])
        return x


@pytest.fixture
def current(monkeypatch):
    """The devices that were made current, the innermost last."""
    devices = [torch.device("cuda:0")]

    @contextmanager
    def device(index):
        devices.append(index)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return devices


@pytest.mark.parametrize("backend", [LinearGpu, MlpGpu])
def test_products_are_launched_on_the_gpu_of_the_weights(backend, current, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr("hybrid_k2.kernels.activation.silu_multiply", lambda x: x)
    module, seen = object.__new__(backend), []
    module.device = torch.device("cuda:1")
    for name in ("_weight", "_gate_up", "_down"):
        setattr(module, name, Weight(current, seen))
    assert module(Activations()).device == module.device
    assert set(seen) == {module.device} and len(current) == 1


def test_nothing_is_made_current_for_the_cpu(current):
    with launching_on(torch.device("cpu")):
        assert len(current) == 1

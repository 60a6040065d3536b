"""Fixtures of the kernel tests: the extension, one shared pool, a generator with a fixed seed."""

import numpy as np
import pytest

_cpu = pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")


@pytest.fixture(scope="session")
def pool():
    """Two workers, whatever the machine has."""
    return _cpu.ThreadPool(2)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(7)

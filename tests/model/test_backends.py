"""Every backend of Linear, MLP and Experts against the float32 reference, on every kind of
kernels.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybrid_k2.backends import registry
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.backends.cpu_numba import NumbaKernels
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.stored import StoredTensor

HIDDEN, WIDTH, EXPERTS, TOKENS, CHOSEN = 256, 512, 6, 5, 3
WRITABLE = [name for name, quant in FORMATS.items() if quant.encode is not None]
NEEDS_STACK = {"Experts"}
CPU_BACKENDS = ("linear_cpu", "mlp_cpu", "experts_cpu")
KERNELS = ("native", "numba")


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request):
    if request.param == "numba":
        return NumbaKernels(2)
    cpu = registry.cpu_extension()
    if cpu is None:
        pytest.skip("hybrid_k2._cpu is not built")
    return NativeKernels(cpu, RuntimeConfig(num_threads=2))


def stored(name: str, quant: str, *shape: int) -> StoredTensor:
    generator = np.random.default_rng(len(name) + sum(shape))
    weight = generator.standard_normal(shape, np.float32) * shape[-1] ** -0.5
    data = FORMATS[quant].quantise(weight).reshape(-1)
    return StoredTensor(name, FORMATS[quant], shape, data)


def module_tensors(module_class: str, quant: str) -> dict[str, StoredTensor]:
    if module_class == "Linear":
        return {"weight": stored("weight", quant, WIDTH, HIDDEN)}
    stack = (EXPERTS,) if module_class in NEEDS_STACK else ()
    return {
        "gate_proj": stored("gate_proj", quant, *stack, WIDTH, HIDDEN),
        "up_proj": stored("up_proj", quant, *stack, WIDTH, HIDDEN),
        "down_proj": stored("down_proj", quant, *stack, HIDDEN, WIDTH),
    }


def run(module, module_class: str, shared: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    if module_class not in NEEDS_STACK:
        return module(x)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator) for _ in range(TOKENS)])
    ids = ids[:, :CHOSEN].to(torch.int32)
    ids[1, 0] = -1
    slot = module.submit(x, ids, torch.rand(TOKENS, CHOSEN, generator=generator))
    return module.sync(slot) if shared is None else module.sync(slot, shared)


@pytest.mark.parametrize("quant", WRITABLE)
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_cpu_backend_computes_what_the_reference_computes(name, quant, kernels):
    context = SimpleNamespace(kernels=kernels)
    for module_class in registry.BACKENDS[name].serves:
        tensors = module_tensors(module_class, quant)
        y = run(registry.create(name, module_class, tensors, context), module_class)
        expected = run(registry.create("reference", module_class, tensors, context), module_class)
        error = (y - expected).norm() / expected.norm()
        # int8 activations with a scale per 32 keep under 1.3%; float types only round.
        assert error < (1e-5 if quant in ("F32", "F16", "BF16") else 0.013)


@pytest.mark.parametrize("name", ("reference", "experts_cpu"))
def test_experts_are_added_to_the_shared_experts_result_in_its_memory(name, kernels):
    tensors = module_tensors("Experts", "Q4_0")
    experts = registry.create(name, "Experts", tensors, SimpleNamespace(kernels=kernels))
    shared = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(4))
    apart = torch.empty(HIDDEN, TOKENS).t().copy_(shared)  # not contiguous
    expected = shared + run(experts, "Experts")
    for place in (shared, apart):
        both = run(experts, "Experts", place)
        assert both.data_ptr() == place.data_ptr()
        torch.testing.assert_close(both, expected, atol=1e-5, rtol=1e-5)


def test_numba_covers_a_type_without_a_decoder_of_its_own():
    tensors = module_tensors("Linear", "Q5_0")
    context = SimpleNamespace(kernels=NumbaKernels(1))
    y = run(registry.create("linear_cpu", "Linear", tensors, context), "Linear")
    expected = run(registry.create("reference", "Linear", tensors, context), "Linear")
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_a_missing_extension_is_said_once_and_loudly(monkeypatch, caplog):
    import sys

    from hybrid_k2.backends.cpu_kernels import open_cpu_kernels

    monkeypatch.setitem(sys.modules, "hybrid_k2._cpu", None)
    monkeypatch.delattr("hybrid_k2._cpu", raising=False)
    kernels = open_cpu_kernels(RuntimeConfig(num_threads=1))
    assert isinstance(kernels, NumbaKernels)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "slower" in record.message and "g++" in record.message

"""The table of backends: complete, importable, strict about kwargs; and what a module costs."""

import importlib
from math import prod

import pytest
from k2_modules import REAL_K2, TINY_K2, k2_modules

from hybrid_k2.backends.footprint import footprint, kv_bytes_per_token
from hybrid_k2.backends.registry import (
    BACKENDS,
    MODULE_CLASSES,
    create,
    default_placement,
    find_backend,
)
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import BadInputError

SERVED = [(name, served) for name, spec in BACKENDS.items() for served in spec.serves]


@pytest.mark.parametrize(("name", "module_class"), SERVED)
def test_every_factory_in_the_table_exists(name: str, module_class: str) -> None:
    path = BACKENDS[name].factory.format(module_class=module_class)
    module_name, _, attribute = path.partition(":")
    assert callable(getattr(importlib.import_module(module_name), attribute))


@pytest.mark.parametrize("module_class", MODULE_CLASSES)
@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:3"])
def test_every_class_has_a_default_that_serves_it(module_class: str, device: str) -> None:
    name, kwargs = default_placement(module_class, device)
    assert module_class in BACKENDS[name].serves
    assert BACKENDS[name].resolve_kwargs(kwargs) == kwargs
    if module_class != "Experts":
        assert kwargs.get("device", "cpu") == device


@pytest.mark.parametrize("name", BACKENDS)
def test_defaults_are_values_that_are_allowed(name: str) -> None:
    for spec in BACKENDS[name].kwargs.values():
        assert spec.accepts(spec.default)
        assert spec.cuda_default is None or spec.accepts(spec.cuda_default)


def test_a_bare_cuda_is_the_first_device_and_changes_the_default_kv_dtype() -> None:
    attention = BACKENDS["attention"]
    assert attention.resolve_kwargs({}) == {"device": "cpu", "kv_dtype": "float32"}
    assert attention.resolve_kwargs({"device": "cuda"}) == {
        "device": "cuda:0",
        "kv_dtype": "bfloat16",
    }
    asked = {"device": "cuda:1", "kv_dtype": "float16"}
    assert attention.resolve_kwargs(asked) == asked


@pytest.mark.parametrize(
    ("backend", "kwargs", "says"),
    [
        ("linear_gpu", {"weigths": "stored"}, "did you mean 'weights'"),
        ("linear_gpu", {"weights": "int4"}, "one of stored, bfloat16"),
        ("linear_gpu", {"device": "cpu"}, "cuda or cuda:N"),
        ("attention", {"device": "gpu0"}, "cpu, cuda or cuda:N"),
        ("attention", {"kv_dtype": True}, "one of float32"),
        ("norm", {"eps": "small"}, "a float"),
        ("norm", {"eps": True}, "a float"),
        ("experts_cpu", {"threads": 4}, "known: deferred_experts, load"),
        ("experts_hybrid", {"gpu_experts": -1}, "an int of 0 or more"),
        ("experts_hybrid", {"over_bus": 1}, "true or false"),
        ("norm", {"eps": -1e-6}, "a float of 0 or more"),
        ("norm", {"eps": float("nan")}, "a float of 0 or more"),
        ("norm", {"eps": float("inf")}, "a float of 0 or more"),
        ("router", {"load": "ram"}, "known: device"),
        ("mlp_cpu", {"load": "swap"}, r"one of mmap, ram, ram\+hugepages"),
    ],
)
def test_a_wrong_kwarg_is_named_with_what_is_allowed(
    backend: str, kwargs: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        BACKENDS[backend].resolve_kwargs(kwargs)


def test_an_unknown_backend_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInputError, match="did you mean 'experts_cpu'"):
        find_backend("expert_cpu")


def test_a_backend_on_a_class_it_cannot_serve_names_those_that_can() -> None:
    with pytest.raises(BadInputError, match="use reference, mlp_cpu, mlp_gpu"):
        create("linear_cpu", "MLP", {}, None)


@pytest.mark.parametrize(("name", "module_class"), SERVED)
@pytest.mark.parametrize("has_kv_b", [False, True])
@pytest.mark.parametrize("context", [1, 4096])
def test_every_backend_has_a_footprint_on_every_class_it_serves(
    name: str, module_class: str, has_kv_b: bool, context: int
) -> None:
    runtime = RuntimeConfig(context=context)
    kwargs = BACKENDS[name].resolve_kwargs({})
    for module in k2_modules(TINY_K2, has_kv_b=has_kv_b):
        if module.module_class != module_class:
            continue
        cost = footprint(BACKENDS[name], module_class, module.tensors, kwargs, TINY_K2, runtime)
        assert cost.mapped in (0, module.num_bytes)
        assert cost.mapped + cost.ram + sum(cost.vram.values()) >= sum(cost.reads.values())
        assert set(cost.vram) <= {kwargs.get("device", "cpu")} - {"cpu"}
        assert (cost.kv > 0) == (module_class == "Attention")


def test_an_expert_layer_reads_the_share_of_its_bytes_that_a_token_uses() -> None:
    experts = next(m for m in k2_modules(REAL_K2, experts="Q4_0") if m.module_class == "Experts")
    cost = footprint(
        BACKENDS["experts_cpu"], "Experts", experts.tensors, {}, REAL_K2, RuntimeConfig()
    )
    # 8 experts of 3 * 7168 * 2048 weights at 4.5 bits
    assert cost.reads == {"cpu": 8 * 3 * 7168 * 2048 * 18 // 32}
    assert (cost.mapped, cost.ram, cost.vram) == (experts.num_bytes, 0, {})


def test_weights_on_the_gpu_are_the_stored_bytes_or_two_bytes_each() -> None:
    linear = next(m for m in k2_modules(REAL_K2) if m.name == "lm_head")
    for weights, expected in (("stored", linear.num_bytes), ("bfloat16", 2 * 163840 * 7168)):
        kwargs = BACKENDS["linear_gpu"].resolve_kwargs({"weights": weights, "device": "cuda:1"})
        cost = footprint(
            BACKENDS["linear_gpu"], "Linear", linear.tensors, kwargs, REAL_K2, RuntimeConfig()
        )
        assert (cost.mapped, cost.ram, cost.vram) == (0, 0, {"cuda:1": expected})


@pytest.mark.parametrize(("has_kv_b", "is_copied"), [(False, False), (True, True)])
def test_attention_on_the_cpu_copies_only_a_kv_b_that_must_be_split(
    has_kv_b: bool, is_copied: bool
) -> None:
    module = next(
        m for m in k2_modules(REAL_K2, has_kv_b=has_kv_b) if m.module_class == "Attention"
    )
    kwargs = {"device": "cpu", "kv_dtype": "bfloat16"}
    cost = footprint(
        BACKENDS["attention"],
        "Attention",
        module.tensors,
        kwargs,
        REAL_K2,
        RuntimeConfig(context=1000),
    )
    num_weights = sum(prod(tensor.shape) for tensor in module.tensors.values())
    assert cost.kv == (1024 + 64) * 1152  # whole pages, and one for a copy
    assert cost.ram - cost.kv == (4 * num_weights if is_copied else 0)
    assert cost.mapped == (0 if is_copied else module.num_bytes)


def test_the_kv_cache_of_a_token_has_the_published_size() -> None:
    # 61 layers * (512 + 64) * 2 bytes; vLLM's log for K2 agrees
    assert 61 * kv_bytes_per_token(REAL_K2, "bfloat16") == 70272
    assert 61 * kv_bytes_per_token(REAL_K2, "int8") == 61 * (512 + 64 + 16)

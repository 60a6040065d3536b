"""On a CUDA GPU: captured decode and split prefill against the same model on the CPU alone.

Both models have the same random weights. Dense products are bfloat16 on the GPU (8 bits), so steps
agree to about 2^-7 of a layer's output; routing may flip where two experts are equally likely, so
logits are compared by their norm.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("hybrid_k2._cpu", reason="the C++ extension is not built")

from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.backends.prefill_split import ExpertCosts
from hybrid_k2.bench.synthetic_model import K2, Placement, synthetic_modules
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.span import Span
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

RUNTIME = RuntimeConfig(num_threads=4)
CONFIG = replace(
    K2,
    vocab_size=512,
    hidden_size=512,
    intermediate_size=1024,
    moe_intermediate_size=256,
    num_hidden_layers=4,
    n_routed_experts=32,
    num_experts_per_tok=4,
    num_attention_heads=16,
    q_lora_rank=256,
    routed_scaling_factor=0.5,
)
NUM_PAGES = 64
LIMIT = 0.07  # of the logits' norm; up to 0.050 was seen on an H200, where routing flips


@pytest.fixture(scope="module")
def kernels():
    return open_cpu_kernels(RUNTIME)


@pytest.fixture(scope="module")
def models(kernels):
    """(CPU alone, GPU with the CPU's experts, with experts on both, and with some in VRAM too).

    The last two also read a share of a captured step's experts over the bus.
    """
    on_cpu = Placement("cpu")
    on_gpu = Placement("cuda:0")
    on_both = Placement("cuda:0", experts="experts_hybrid")
    kwargs = {"gpu_experts": 10}
    some = Placement("cuda:0", experts="experts_hybrid", experts_kwargs=kwargs)
    made = tuple(
        KimiK2(CONFIG, synthetic_modules(CONFIG, placement, RUNTIME, kernels), NUM_PAGES)
        for placement in (on_cpu, on_gpu, on_both, some)
    )
    for model, share in zip(made[2:], (0.5, 0.3), strict=True):
        model.decode_graphs.bus_share = share
    return made


def difference(logits, expected):
    return float((logits - expected).norm() / expected.norm())


def alike(change, other):
    """The cosine between two changes of the logits: 1 for the same, about 0 for unrelated ones."""
    return float(torch.nn.functional.cosine_similarity(change.flatten(), other.flatten(), dim=0))


def read(model, prompts):
    """The prompts' caches after one step that reads them all."""
    caches = [model.new_cache() for _ in prompts]
    model.forward([Span(c, p, "none") for c, p in zip(caches, prompts, strict=True)])
    return caches


@pytest.mark.parametrize("lengths", [[1], [63], [64, 200, 7], [130] * 5])
def test_captured_decode_gives_the_logits_of_the_cpu(models, lengths):
    rng = np.random.default_rng(sum(lengths))
    prompts = [rng.integers(0, 512, n).tolist() for n in lengths]
    caches = [read(model, prompts) for model in models]
    for _ in range(4):
        token_ids = rng.integers(0, 512, len(lengths)).tolist()
        steps = [
            model.forward([Span(c, [i], "last") for c, i in zip(held, token_ids, strict=True)])
            for model, held in zip(models, caches, strict=True)
        ]
        for expected, *others in zip(*steps, strict=True):
            for logits in others:
                assert difference(logits, expected) < LIMIT
    assert [cache.length for cache in caches[1]] == [n + 4 for n in lengths]
    assert len(lengths) in models[1].decode_graphs.sizes and models[0].decode_graphs is None
    for held in caches:
        for cache in held:
            cache.release()


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_captured_decode_defers_as_the_cpu_does(kernels, num_sequences):
    deferring = {"deferred_experts": 2}
    exact, on_cpu, on_gpu = (
        KimiK2(CONFIG, synthetic_modules(CONFIG, placement, RUNTIME, kernels), NUM_PAGES)
        for placement in (
            Placement("cpu"),
            Placement("cpu", experts_kwargs=deferring),
            Placement("cuda:0", experts="experts_hybrid", experts_kwargs=deferring),
        )
    )
    rng = np.random.default_rng(num_sequences)
    prompts = [rng.integers(0, 512, 20 + i).tolist() for i in range(num_sequences)]
    caches = [read(model, prompts) for model in (exact, on_cpu, on_gpu)]
    for _ in range(4):
        token_ids = rng.integers(0, 512, num_sequences).tolist()
        expected, deferred, captured = (
            torch.cat(
                model.forward([Span(c, [i], "last") for c, i in zip(held, token_ids, strict=True)])
            )
            for model, held in zip((exact, on_cpu, on_gpu), caches, strict=True)
        )
        # Deferral moves the logits by 6%, the GPU's rounding by 3 to 5% in directions of its own.
        assert alike(captured - expected, deferred - expected) > 0.5
    assert num_sequences in on_gpu.decode_graphs.sizes


def test_what_the_bus_takes_is_measured_when_decode_is_captured(kernels):
    on_cpu, on_both = (
        KimiK2(CONFIG, synthetic_modules(CONFIG, placement, RUNTIME, kernels), NUM_PAGES)
        for placement in (
            Placement("cpu"),
            Placement("cuda:0", experts="experts_hybrid"),
        )
    )
    assert on_both.decode_graphs.bus_share is None
    expected, logits = (
        model.forward([Span(read(model, [[1, 2, 3]])[0], [7], "last")])[0]
        for model in (on_cpu, on_both)
    )
    assert 0 <= on_both.decode_graphs.bus_share <= 1
    assert difference(logits, expected) < LIMIT


def test_a_captured_step_repeats_itself_exactly(models):
    model = models[1]
    (cache,) = read(model, [list(range(100))])
    again = []
    for _ in range(3):
        again.append(model.forward([Span(cache, [7], "last")])[0])
        cache.length -= 1
    cache.release()
    assert torch.equal(again[0], again[1]) and torch.equal(again[0], again[2])


@pytest.mark.parametrize("num_tokens", [40, 300])
def test_a_prompt_gives_the_logits_of_the_cpu(models, num_tokens):
    token_ids = np.random.default_rng(num_tokens).integers(0, 512, num_tokens).tolist()
    rows = []
    for model in models:
        cache = model.new_cache()
        first = model.forward([Span(cache, token_ids[:20], "all")])[0]
        rest = model.forward([Span(cache, token_ids[20:], "all")])[0]
        rows.append(torch.cat([first, rest]))
        cache.release()
    for logits in rows[1:]:
        assert difference(logits, rows[0]) < LIMIT


@pytest.mark.parametrize(("layout", "kv_dtype"), [("split", "bfloat16"), ("kv_b", "int8")])
@pytest.mark.parametrize(
    ("num_queries", "length"), [(1, 1), (1, 100), (15, 80), (16, 16), (70, 300), (1111, 1111)]
)
def test_attention_on_the_gpu_is_that_of_the_cpu(kernels, layout, kv_dtype, num_queries, length):
    rng = np.random.default_rng(0)
    heads, rank, nope, value = CONFIG.num_attention_heads, 512, 128, 128
    shapes = {"k_b_proj": (heads, rank, nope), "v_b_proj": (heads, value, rank)}
    if layout == "kv_b":
        shapes = {"kv_b_proj": (heads * (nope + value), rank)}
    tensors = {key: stored(rng, "Q8_0", shape) for key, shape in shapes.items()}
    context = BackendContext(CONFIG, RUNTIME, kernels)
    generator = torch.Generator().manual_seed(1)
    q_nope, q_pe, rows = (
        torch.randn(*shape, generator=generator)
        for shape in [(num_queries, heads, nope), (num_queries, heads, 64), (length, 576)]
    )
    parts = rows.split([length // 2, length - length // 2])
    expected = registry.create("attention", "Attention", tensors, context)(q_nope, q_pe, [rows])
    kwargs = {"kv_dtype": kv_dtype}
    attend = registry.create("attention_gpu", "Attention", tensors, context, kwargs)
    cached = [attend.cache_rows(part.cuda()).to(attend.kv_dtype) for part in parts if len(part)]
    out = attend(q_nope.cuda(), q_pe.cuda(), cached)
    assert out.dtype == torch.float32
    # One query may be mostly one key, whose row of 8 bits is off by 0.8% in score and value.
    assert difference(out.cpu(), expected) < (2**-5 if kv_dtype == "int8" else 2**-6)


def stored(rng, quant, shape):
    form = by_name(quant)
    blocks = random_blocks(rng, form, int(np.prod(shape)) // form.block_size, shape[-1] ** -0.5)
    return StoredTensor("random", form, shape, np.ascontiguousarray(blocks).reshape(-1))


@pytest.mark.parametrize("quants", [("Q4_K", "Q4_K", "Q6_K"), ("Q4_0", "Q4_0", "Q4_0")])
def test_a_prompts_experts_on_both_sides_are_those_of_the_cpu(kernels, quants):
    rng = np.random.default_rng(3)
    shapes = [(32, 256, 512), (32, 256, 512), (32, 512, 256)]
    names = ("gate_proj", "up_proj", "down_proj")
    tensors = {n: stored(rng, q, s) for n, q, s in zip(names, quants, shapes, strict=True)}
    context = BackendContext(CONFIG, RUNTIME, kernels)
    cpu = registry.create("experts_cpu", "Experts", tensors, context)
    both = registry.create("experts_hybrid", "Experts", tensors, context, {"stream_mb": 1})
    shared = context.shared["experts_hybrid cuda:0"]
    x = torch.randn(200, 512, generator=torch.Generator().manual_seed(2))
    ids = torch.from_numpy(rng.integers(-1, 32, (200, 4)).astype(np.int32))
    weights = torch.from_numpy(rng.uniform(0.1, 1, (200, 4)).astype(np.float32))
    expected = cpu.sync(cpu.submit(x, ids, weights))
    for cpu_s, gpu_s in [(1e-3, 1e-3), (1e-3, 1e-9), (1e-9, 1e-3)]:
        shared.split.cpu, shared.split.gpu = ExpertCosts(cpu_s), ExpertCosts(gpu_s)
        y = both.sync(both.submit(x.cuda(), ids.cuda(), weights.cuda()))
        assert y.device.type == "cuda" and difference(y.cpu(), expected) < 2**-6

"""Kernels around the hand-off, against torch; the flags need a GPU, see tests/gpu."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.backends.router import route
from hybrid_k2.kernels.handoff import GpuHits, add_and_norm, publish, route_and_publish
from hybrid_k2.kernels.host_memory import fetch


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


@pytest.mark.parametrize(("num_experts", "top_k", "slots"), [(384, 8, 8), (20, 3, 3), (40, 5, 8)])
@pytest.mark.parametrize("normalise", [True, False])
def test_experts_are_chosen_as_the_router_does(device, num_experts, top_k, slots, normalise):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, num_experts, generator=generator)
    bias = 0.1 * torch.randn(num_experts, generator=generator)
    config = SimpleNamespace(norm_topk_prob=normalise, routed_scaling_factor=2.5)
    expected_ids, expected = route(logits, bias, config, top_k)
    ids = pinned(torch.full((3, slots), 7, dtype=torch.int32))
    weights = pinned(torch.ones(3, slots))
    route_and_publish(
        *(logits.to(device), bias.to(device), ids, weights),
        top_k=top_k,
        scaling=2.5,
        normalise=normalise,
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    for token in range(3):
        assert (ids[token, top_k:] == -1).all() and not weights[token, top_k:].any()
        got = dict(zip(ids[token, :top_k].tolist(), weights[token, :top_k].tolist(), strict=True))
        want = dict(zip(expected_ids[token].tolist(), expected[token].tolist(), strict=True))
        assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("has_residents", "num_on_bus", "num_late"), [(True, 0, 0), (False, 5, 2), (True, 7, 3)]
)
def test_every_hit_is_the_gpus_or_the_cpus_now_or_later(
    device, has_residents, num_on_bus, num_late
):
    tokens, num_experts, top_k = 3, 40, 8
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(tokens, num_experts, generator=generator)
    in_vram = torch.where(torch.arange(num_experts) % 3 == 0, 16, -1)
    in_reach = torch.where(torch.arange(num_experts) < 30, 16, -1)  # some pages are not registered
    config = SimpleNamespace(norm_topk_prob=True, routed_scaling_factor=2.5)
    chosen, expected = route(logits, torch.zeros(num_experts), config, top_k)
    ids = pinned(torch.zeros(tokens, top_k, dtype=torch.int32))
    weights = pinned(torch.zeros(tokens, top_k))
    tables = [
        (offsets.to(device), torch.full_like(ids, 7, device=device)) if wanted else None
        for offsets, wanted in [(in_vram, has_residents), (in_reach, num_on_bus)]
    ]
    bus_hits = torch.tensor([num_on_bus], dtype=torch.int32, device=device)
    gpu = GpuHits(torch.zeros(tokens, top_k, device=device), *tables, bus_hits)
    late = torch.full_like(ids, -1, device=device)
    route_and_publish(
        *(logits.to(device), torch.zeros(num_experts, device=device), ids, weights),
        top_k=top_k,
        scaling=2.5,
        normalise=True,
        gpu=gpu,
        late=(late, num_late) if num_late else None,
    )
    late = late.cpu()
    none = torch.full_like(ids, -1)
    resident, bus = (table[1].cpu() if table else none for table in (gpu.resident, gpu.bus))
    assert ((ids >= 0).int() + (late >= 0) + (resident >= 0) + (bus >= 0) == 1).all()
    taken = torch.stack([ids, late, resident, bus]).amax(0)
    assert torch.equal(taken.sort().values, chosen.sort().values)
    want = dict(zip(chosen[2].tolist(), expected[2].tolist(), strict=True))
    assert dict(zip(taken[2].tolist(), gpu.weights[2].tolist(), strict=True)) == pytest.approx(want)
    if has_residents:
        assert torch.equal(resident >= 0, taken % 3 == 0)
    shares = [num_on_bus * (i + 1) // tokens - num_on_bus * i // tokens for i in range(tokens)]
    for share, row, others, all_ids in zip(shares, bus, resident, taken, strict=True):
        wanted = (torch.arange(top_k) >= top_k - share) & (others < 0) & (all_ids < 30)
        assert torch.equal(row >= 0, wanted)
    assert num_on_bus == 0 or (bus >= 0).any()
    for row, of_cpu, heft in zip(late >= 0, (ids >= 0) | (late >= 0), weights, strict=True):
        assert row.sum() == min(num_late, of_cpu.sum())
        early = heft[of_cpu & ~row]
        assert not len(early) or not row.any() or heft[row].max() <= early.min()


def test_ids_are_replaced_and_weights_stay(device):
    ids = torch.arange(6, dtype=torch.int32).view(2, 3)
    host_ids = pinned(torch.zeros(2, 3, dtype=torch.int32))
    publish(ids.to(device), host_ids)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(host_ids, ids)


@pytest.mark.parametrize("size", [256, 7168])
@pytest.mark.parametrize("is_added", [True, False])
@pytest.mark.parametrize("publishes", [True, False])
def test_a_norm_adds_first_and_publishes(device, size, is_added, publishes):
    generator = torch.Generator().manual_seed(1)
    h, added = (torch.randn(2, size, generator=generator) for _ in range(2))
    weight = torch.rand(size, generator=generator)
    total = h + added if is_added else h.clone()
    expected = F.rms_norm(total, (size,), weight, 1e-6)
    host_x = pinned(torch.zeros(2, size)) if publishes else None
    on_device = h.to(device).clone()
    x = add_and_norm(
        on_device, added.to(device) if is_added else None, weight.to(device), 1e-6, host_x
    )
    torch.testing.assert_close(x.cpu(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_device.cpu(), total, rtol=0, atol=0)
    if publishes:
        assert torch.equal(host_x, x.cpu())


@pytest.mark.parametrize("size", [1, 385, 1000])
def test_host_memory_is_read_as_it_is(device, size):
    source = pinned(torch.arange(size, dtype=torch.int32))
    fetched = fetch(source, device)
    assert fetched.device.type == device.type and torch.equal(fetched.cpu(), source)

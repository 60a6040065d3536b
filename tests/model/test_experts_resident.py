"""Experts that stay in VRAM: who stays follows the counts, and the kernels' table follows that."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.backends.experts_resident import ResidentExperts
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

EXPERTS = 6


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    made = []
    for quant, shape in [("Q4_K", (6, 256, 512)), ("Q4_K", (6, 256, 512)), ("Q6_K", (6, 512, 256))]:
        form = by_name(quant)
        blocks = random_blocks(rng, form, int(np.prod(shape)) // form.block_size, 1.0)
        made.append(StoredTensor("experts", form, shape, np.ascontiguousarray(blocks).reshape(-1)))
    return made


def parts_of(tensors, expert):
    return [t.as_torch().view(EXPERTS, -1)[expert] for t in tensors]


@pytest.fixture
def resident(tensors):
    made = ResidentExperts(tensors, 2, torch.device("cpu"), np.zeros(EXPERTS))
    for expert in (0, 1):
        made.adopt(expert, parts_of(tensors, expert))
    return made


def in_table(resident, expert):
    """The bytes that the kernels would read for the expert; None where it is not there."""
    table, found = resident.table, []
    for matrix in (table.gate, table.up, table.down):
        start = int(matrix.offsets[expert])
        if start < 0:
            return None
        size = matrix.quant.num_bytes(matrix.shape[0] * matrix.shape[1])
        found.append(matrix.data[start : start + size])
    return found


def test_the_table_has_the_bytes_of_those_that_are_there_and_no_others(resident, tensors):
    for expert in range(EXPERTS):
        found = in_table(resident, expert)
        assert (found is not None) == (expert in resident) == (expert < 2)
        if found is not None:
            for got, want in zip(found, parts_of(tensors, expert), strict=True):
                assert torch.equal(got, want)


def test_an_expert_used_more_takes_the_place_of_the_one_used_least(tensors):
    counts = np.zeros(EXPERTS)
    resident = ResidentExperts(tensors, 2, torch.device("cpu"), counts)
    for expert in (0, 1):
        resident.adopt(expert, parts_of(tensors, expert))
    counts += [5, 3, 4, 9, 0, 0]
    assert [e for e in range(EXPERTS) if resident.wants(e)] == [2, 3]
    resident.adopt(3, parts_of(tensors, 3))
    assert sorted(resident) == [0, 3] and in_table(resident, 1) is None
    assert torch.equal(in_table(resident, 3)[2], parts_of(tensors, 3)[2])
    assert torch.equal(resident.parts(0)[1], parts_of(tensors, 0)[1])
    assert not resident.wants(2) and not resident.wants(3)


def test_every_place_begins_where_the_kernels_can_load(tensors):
    resident = ResidentExperts(tensors, 3, torch.device("cpu"), np.zeros(EXPERTS))
    for expert in (5, 3, 1):
        resident.adopt(expert, parts_of(tensors, expert))
    for matrix in (resident.table.gate, resident.table.up, resident.table.down):
        there = matrix.offsets[matrix.offsets >= 0]
        assert len(there.unique()) == 3 and not (there % 16).any()

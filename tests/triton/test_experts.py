"""Experts on the GPU against float64, with some of them elsewhere."""

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.kernels import experts
from hybrid_k2.kernels.expert_table import ExpertMatrix, ExpertTable
from hybrid_k2.kernels.experts import grouped_experts
from hybrid_k2.kernels.matrix import apart, over_blocks
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.random_blocks import random_blocks

HIDDEN, WIDTH, NUM_EXPERTS = 256, 256, 3
ABSENT = 1  # the expert that is not on the GPU


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes programs one after another, and no longer for a wider one."""
    tile = {"ROWS": 2, "LANES": 512, "UNITS": 8, "num_warps": 4}
    monkeypatch.setattr(experts, "_tile", lambda units_per_row: tile)


def projection(name: str, rows: int, cols: int, seed: int, is_apart: bool, device: torch.device):
    """An ExpertMatrix with its experts in another order and gaps, and float64 weights of all."""
    quant = FORMATS[name]
    blocks_each = rows * cols // quant.block_size
    rng = np.random.default_rng(seed)
    blocks = random_blocks(rng, quant, NUM_EXPERTS * blocks_each, 0.05)
    blocks = blocks.reshape(NUM_EXPERTS, -1)
    size = blocks.shape[1]
    step = -(-size // 16) * 16 + 32
    data = torch.full((NUM_EXPERTS * step,), 255, dtype=torch.uint8)
    offsets = torch.tensor([step, -1, 0])
    for expert in (0, 2):
        stored = torch.from_numpy(blocks[expert])
        if is_apart:
            stored = apart(over_blocks(stored, quant, (rows, cols))).data
        data[offsets[expert] : offsets[expert] + size] = stored
    ggml_type = gguf.GGMLQuantizationType[name]
    weights = gguf.quants.dequantize(blocks.reshape(NUM_EXPERTS * rows, -1), ggml_type)
    weights = torch.from_numpy(weights).double().view(NUM_EXPERTS, rows, cols)
    matrix = ExpertMatrix(data.to(device), quant, (rows, cols), offsets.to(device), is_apart)
    return matrix, weights


def layer(gate_up: str, down: str, is_apart: bool, device: torch.device):
    """An ExpertTable, and its oracle: (x, ids, weights) -> [T, hidden] float64."""
    parts = [
        projection(gate_up, WIDTH, HIDDEN, 1, is_apart, device),
        projection(gate_up, WIDTH, HIDDEN, 2, is_apart, device),
        projection(down, HIDDEN, WIDTH, 3, is_apart, device),
    ]

    def oracle(x, expert_ids, weights):
        x, y = x.double(), torch.zeros(x.shape[0], HIDDEN, dtype=torch.float64)
        for token, k in np.ndindex(*expert_ids.shape):
            expert = int(expert_ids[token, k])
            if expert in (0, 2):
                gate, up, down = (weight[expert] for _, weight in parts)
                hidden = F.silu(gate @ x[token]) * (up @ x[token])
                y[token] += weights[token, k].double() * (down @ hidden)
        return y

    return ExpertTable(*(matrix for matrix, _ in parts)), oracle


def hits(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor(rows, dtype=torch.int32)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    return ids, weights


@pytest.mark.parametrize(
    ("gate_up", "down", "is_apart"),
    [("Q4_K", "Q6_K", False), ("Q6_K", "IQ4_XS", True), ("Q4_0", "Q8_0", False)],
)
def test_hits_of_experts_on_the_gpu_are_summed_and_others_skipped(gate_up, down, is_apart, device):
    table, oracle = layer(gate_up, down, is_apart, device)
    x = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(4))
    ids, weights = hits([2, ABSENT, 0], [-1, ABSENT, 2])
    y = grouped_experts(x.to(device), ids.to(device), weights.to(device), table).cpu()
    expected = oracle(x, ids, weights)
    # Twice the activations' rounding, in x and in the hidden numbers, and float32 sums.
    assert (y - expected).norm() <= 2**-12 * expected.norm()


def test_a_token_without_a_hit_has_zeros_and_moving_an_expert_is_seen(device):
    table, oracle = layer("Q4_0", "Q4_0", False, device)
    x = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(5))
    ids, weights = hits([ABSENT, 0])
    args = (x.to(device), ids.to(device), weights.to(device), table)
    expected = oracle(x, ids, weights)
    assert (grouped_experts(*args).cpu() - expected).norm() <= 2**-12 * expected.norm()
    for matrix in (table.gate, table.up, table.down):
        matrix.offsets[0] = -1
    assert not grouped_experts(*args).any()

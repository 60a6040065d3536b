"""Decoding and products of quantised matrices against the gguf package and float64."""

import gguf
import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.kernels import linear
from hybrid_k2.kernels.dequantise import dequantise
from hybrid_k2.kernels.linear import quantised_linear
from hybrid_k2.kernels.matrix import (
    SUPPORTED,
    QuantisedMatrix,
    apart,
    in_blocks,
    over_blocks,
    upload,
)
from hybrid_k2.quant import FORMATS
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

EVERY_FORMAT = pytest.mark.parametrize("name", SUPPORTED)
EVERY_LAYOUT = pytest.mark.parametrize("layout", ["blocks", "apart"])


def stored(name: str, *shape: int, seed: int = 0) -> StoredTensor:
    quant = FORMATS[name]
    rng = np.random.default_rng(seed)
    blocks = random_blocks(rng, quant, int(np.prod(shape)) // quant.block_size, 0.02)
    return StoredTensor("weight", quant, shape, blocks.reshape(-1))


def on(device: torch.device, tensor: StoredTensor, layout: str) -> QuantisedMatrix:
    matrix = over_blocks(tensor.as_torch().to(device), tensor.quant, tensor.shape)
    return matrix if layout == "blocks" else apart(matrix)


def oracle(tensor: StoredTensor) -> torch.Tensor:
    """float32 weights by the gguf package."""
    ggml_type = gguf.GGMLQuantizationType[tensor.quant.name]
    rows = tensor.data.reshape(-1, tensor.row_bytes)
    return torch.from_numpy(gguf.quants.dequantize(rows, ggml_type)).reshape(tensor.shape)


def assert_product(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, step: float) -> None:
    """x [T, cols], weight [rows, cols]. Both operands of each product are rounded to bfloat16, each
    by at most `step`; the float32 sums add next to nothing to that.
    """
    x, weight = x.double().cpu(), weight.double()
    bound = (x.abs() @ weight.abs().T) * (2 * step + step**2 + 2**-18)
    assert ((y.double().cpu() - x @ weight.T).abs() <= bound).all()


@EVERY_FORMAT
@EVERY_LAYOUT
def test_decoding_is_exact_in_float32(name, layout, device):
    tensor = stored(name, 5, 768)
    out = torch.empty(tensor.shape, device=device)
    dequantise(on(device, tensor, layout), out)
    weights = oracle(tensor)
    # The GPU may fuse scale * code - offset into one rounding where gguf has two.
    assert ((out.cpu() - weights).abs() <= 2**-23 * weights.abs().max()).all()


@EVERY_FORMAT
def test_the_layout_apart_has_the_same_bytes_in_another_order(name, device):
    tensor = stored(name, 3, 512)
    matrix = on(device, tensor, "apart")
    assert matrix.data.numel() == tensor.num_bytes
    assert torch.equal(in_blocks(matrix).reshape(-1).cpu(), tensor.as_torch())


@EVERY_FORMAT
@EVERY_LAYOUT
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_a_product_equals_float64(name, layout, num_tokens, device, bfloat16_step):
    tensor = stored(name, 66, 512)
    x = torch.randn(num_tokens, 512, generator=torch.Generator().manual_seed(1))
    y = quantised_linear(x.to(device), on(device, tensor, layout))
    assert_product(y, x, oracle(tensor), bfloat16_step)


@pytest.mark.parametrize("num_programs", [1, 8, 10**6])
def test_splitting_the_columns_changes_nothing_and_can_be_repeated(
    num_programs, device, bfloat16_step, monkeypatch
):
    monkeypatch.setattr(linear, "_PROGRAMS", num_programs)
    tensor = stored("Q8_0", 70, 480)
    matrix = on(device, tensor, "apart")
    x = torch.randn(2, 480, generator=torch.Generator().manual_seed(2))
    first, second = (quantised_linear(x.to(device), matrix) for _ in range(2))
    assert_product(first, x, oracle(tensor), bfloat16_step)
    assert torch.equal(first, second)
    assert not matrix.arrivals.any()


@pytest.mark.parametrize("num_tokens", [1, 3, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_multiplies_each_matrix_with_its_own_part_of_a_strided_x(
    num_tokens, dtype, device, bfloat16_step
):
    tensor = stored("Q5_0", 2, 34, 64)
    wide = torch.randn(num_tokens, 2, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
    y = quantised_linear(wide.to(device)[..., :64], upload(tensor, device=device))
    weights = oracle(tensor)
    for i in range(2):
        assert_product(y[:, i].contiguous(), wide[:, i, :64].float(), weights[i], bfloat16_step)


def test_many_tokens_go_through_pieces_of_bounded_size(device, bfloat16_step, monkeypatch):
    monkeypatch.setattr(linear, "_SCRATCH_BYTES", 2 * 256 * 20)
    tensor = stored("Q4_K", 50, 256)
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(4))
    y = quantised_linear(x.to(device), upload(tensor, device=device))
    # torch rounds the result to bfloat16 too.
    weights = oracle(tensor)
    slack = (x.double() @ weights.double().T).abs() * 2**-8
    bound = (x.double().abs() @ weights.double().abs().T) * (2 * bfloat16_step + 2**-16) + slack
    assert ((y.double().cpu() - x.double() @ weights.double().T).abs() <= bound).all()


def test_tensors_of_one_type_are_stacked_row_after_row(device):
    parts = [stored("Q6_K", rows, 256, seed=rows) for rows in (3, 6)]
    matrix = upload(*parts, device=device)
    out = dequantise(matrix, torch.empty(9, 256, device=device)).cpu()
    expected = torch.cat([oracle(part) for part in parts])
    assert torch.allclose(out, expected, rtol=2**-22, atol=0)


def test_a_type_that_no_kernel_decodes_is_refused(device):
    with pytest.raises(KeyError):
        upload(stored("Q2_K", 2, 256), device=device)

"""Decoding and products of quantised matrices against the gguf package and float64."""

import gguf
import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hybrid_k2.kernels import linear, matrix
from hybrid_k2.kernels.dequantise import dequantise
from hybrid_k2.kernels.fixed_point import to_fixed_point
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


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def oracle(tensor: StoredTensor) -> torch.Tensor:
    """float32 weights by the gguf package."""
    ggml_type = gguf.GGMLQuantizationType[tensor.quant.name]
    rows = tensor.data.reshape(-1, tensor.row_bytes)
    return torch.from_numpy(gguf.quants.dequantize(rows, ggml_type)).reshape(tensor.shape)


def assert_product(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """x [T, cols], weight [rows, cols]. Activations are off by at most half a 32767th of the
    largest of their 32; a float32 sum of offsets and products adds 2^-20 of what is summed.
    """
    x, weight = x.double().cpu(), weight.double()
    largest = x.abs().unflatten(1, (-1, 32)).amax(2).repeat_interleave(32, 1)  # [T, cols]
    bound = (largest / 65534 + x.abs() * 2**-20) @ weight.abs().T * 1.01
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
def test_a_product_equals_float64(name, layout, device):
    tensor = stored(name, 6, 768)
    x = randn(1, 768)
    assert_product(quantised_linear(x.to(device), on(device, tensor, layout)), x, oracle(tensor))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize(
    ("num_tokens", "rows", "cols"), [(3, 5, 1280), (9, 3, 256), (2, 67, 256), (1, 2, 4352)]
)
def test_a_product_of_any_shape_equals_float64(name, num_tokens, rows, cols, device):
    tensor, x = stored(name, rows, cols), randn(num_tokens, cols)
    y = quantised_linear(x.to(device), upload(tensor, device=device))
    assert_product(y, x, oracle(tensor))


def test_activations_of_any_size_keep_sixteen_bits(device):
    x = randn(2, 96) * torch.tensor([1e-30, 1.0, 1e30]).repeat_interleave(32)
    x[1, :32] = 0
    fixed = to_fixed_point(x.to(device))
    halves = fixed.codes.cpu().view(torch.int16).view(2, 2, -1, 2)  # [T, half, K / 4, 2]
    codes = halves.transpose(1, 2).reshape(2, 96).double()
    scales = fixed.scales.cpu().double().repeat_interleave(32, 1)
    assert ((codes * scales - x).abs() <= scales * 0.501).all()
    sums = (codes * scales).view(2, 6, 16).sum(2)
    assert torch.allclose(fixed.sums.cpu().double(), sums, rtol=2**-20, atol=0)


@pytest.mark.parametrize("num_tokens", [1, 3, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_multiplies_each_matrix_with_its_own_part_of_a_strided_x(num_tokens, dtype, device):
    tensor = stored("Q5_0", 2, 34, 64)
    wide = randn(num_tokens, 2, 96).to(dtype)
    y = quantised_linear(wide.to(device)[..., :64], upload(tensor, device=device)).cpu()
    weights = oracle(tensor)
    for i in range(2):
        x = wide[:, i, :64].float()
        if num_tokens <= linear.MAX_TOKENS:
            assert_product(y[:, i], x, weights[i])
        else:
            expected = x.double() @ weights[i].double().T
            assert (y[:, i] - expected).norm() <= 2**-6 * expected.norm()


def test_matrices_may_share_one_fixed_point(device):
    x, tensor = randn(2, 256), stored("Q4_0", 4, 256)
    matrix = upload(tensor, device=device)
    shared = quantised_linear(to_fixed_point(x.to(device)), matrix)
    assert torch.equal(shared, quantised_linear(x.to(device), matrix))


def test_many_tokens_go_through_pieces_of_bounded_size(device, bfloat16_step, monkeypatch):
    monkeypatch.setattr(linear, "_SCRATCH_BYTES", 2 * 256 * 20)
    tensor = stored("Q4_K", 50, 256)
    x = randn(40, 256)
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


def test_a_matrix_is_uploaded_in_pieces_and_may_lie_inside_a_buffer(device, monkeypatch):
    monkeypatch.setattr(matrix, "_UPLOAD_BYTES", 256 * 3)  # three blocks
    tensor = stored("Q6_K", 5, 512)
    uploaded = upload(tensor, device=device)
    assert torch.equal(in_blocks(uploaded).reshape(-1).cpu(), tensor.as_torch())
    buffer = torch.cat([torch.zeros(32, dtype=torch.uint8), tensor.as_torch()]).to(device)
    inside = apart(over_blocks(buffer[32:], tensor.quant, tensor.shape))
    assert torch.equal(inside.data, uploaded.data)


def test_a_type_that_no_kernel_decodes_is_refused(device):
    with pytest.raises(KeyError):
        upload(stored("Q2_K", 2, 256), device=device)

"""Every format's bytes mean what the gguf package says: bit for bit in float32."""

import subprocess
import sys
from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch

from hybrid_k2.quant import FORMATS, QuantFormat, StoredTensor, by_ggml_type, by_name
from hybrid_k2.quant.known_types import IK_LLAMA, MAINLINE, type_name, why_unsupported
from hybrid_k2.quant.random_blocks import random_blocks as spread_blocks

EVERY_FORMAT = pytest.mark.parametrize("quant", FORMATS.values(), ids=list(FORMATS))
# Zero of both signs, the smallest and the largest subnormal, one, and the largest finite numbers.
EXTREME_SCALES = np.array(
    [0x0000, 0x8000, 0x0001, 0x03FF, 0x3C00, 0x7BFF, 0xFBFF, 0x8001], np.uint16
)


def random_blocks(quant: QuantFormat, num_blocks: int, seed: int = 0) -> np.ndarray:
    """uint8 [num_blocks, block_bytes]: random codes; finite scales, the extreme ones first."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_blocks, quant.block_bytes), np.uint8)
    if quant.half_offsets:
        finite = rng.integers(0, 0x7C00, (num_blocks, len(quant.half_offsets)), np.uint16)
        finite |= rng.integers(0, 2, finite.shape, np.uint16) << 15
        finite[: len(EXTREME_SCALES)] = EXTREME_SCALES[:num_blocks, None]
        for column, offset in enumerate(quant.half_offsets):
            blocks[:, offset : offset + 2] = finite[:, [column]].astype("<u2").view(np.uint8)
    elif quant.name == "MXFP4":
        blocks[:, 0] %= 253  # the largest exponents overflow
    else:
        blocks[:, -1] &= 0xBB  # clears a bit of every exponent
    return blocks


def oracle(blocks: np.ndarray, quant: QuantFormat) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(quant.ggml_type))


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return np.array_equal(ours.numpy().view(np.uint32), theirs.astype(np.float32).view(np.uint32))


@EVERY_FORMAT
def test_dequantising_is_bit_exact_with_the_gguf_package(quant: QuantFormat) -> None:
    blocks = random_blocks(quant, num_blocks=512)
    theirs = oracle(blocks, quant)
    assert np.isfinite(theirs).all()
    assert same_bits(quant.dequantise(torch.from_numpy(blocks)), theirs)


@EVERY_FORMAT
def test_sizes_and_ids_are_ggmls(quant: QuantFormat) -> None:
    ggml_type = gguf.GGMLQuantizationType[quant.name]
    assert ggml_type == quant.ggml_type
    assert gguf.GGML_QUANT_SIZES[ggml_type] == (quant.block_size, quant.block_bytes)
    assert by_name(quant.name) is by_ggml_type(quant.ggml_type) is quant


@EVERY_FORMAT
def test_half_offsets_are_the_only_way_to_a_weight_that_is_not_finite(quant: QuantFormat) -> None:
    for offset in quant.half_offsets:
        blocks = random_blocks(quant, num_blocks=1)
        blocks[0, offset : offset + 2] = np.array([0x7E00], "<u2").view(np.uint8)  # NaN
        assert np.isnan(quant.dequantise(torch.from_numpy(blocks)).numpy()).any()


@EVERY_FORMAT
def test_random_blocks_for_measurements_have_the_spread_asked_for(quant: QuantFormat) -> None:
    num_blocks = 1 << 16 if quant.block_size == 1 else 2048
    blocks = spread_blocks(np.random.default_rng(3), quant, num_blocks, std=0.02)
    assert blocks.shape == (num_blocks, quant.block_bytes)
    weights = quant.dequantise(torch.from_numpy(blocks)).numpy()
    tolerance = 2**0.5 if quant.name == "MXFP4" else 1.05  # its scales are powers of two
    assert 0.02 / tolerance <= weights.std() <= 0.02 * tolerance
    if len(quant.half_offsets) == 2:  # the minimum takes the mean away
        assert abs(weights.mean()) < 0.05 * 0.02


@EVERY_FORMAT
def test_one_expert_and_single_rows_equal_the_whole(quant: QuantFormat) -> None:
    shape = (3, 5, 2 * quant.block_size)
    data = random_blocks(quant, 3 * 5 * 2).reshape(-1)
    tensor = StoredTensor("experts", quant, shape, data)
    whole = tensor.dequantise()
    assert whole.shape == shape and whole.dtype == torch.float32
    assert torch.equal(tensor.dequantise(1), whole[1])
    assert torch.equal(tensor.dequantise(slice(1, 3)), whole[1:3])
    matrix = tensor.reshaped(15, 2 * quant.block_size)
    assert torch.equal(matrix.rows([14, 0, 0]), whole.reshape(15, -1)[[14, 0, 0]])
    assert matrix.rows([]).shape == (0, 2 * quant.block_size)
    assert tensor.num_bytes == data.nbytes == 15 * tensor.row_bytes


@EVERY_FORMAT
def test_a_large_tensor_is_decoded_in_pieces_with_the_same_result(
    quant: QuantFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.from_numpy(random_blocks(quant, 40).reshape(4, -1))
    whole = quant.dequantise(data)
    monkeypatch.setattr("hybrid_k2.quant.format.DECODE_WEIGHTS", 7 * quant.block_size)
    assert torch.equal(quant.dequantise(data), whole)


def test_a_read_only_mapping_is_used_in_place_and_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    data = random_blocks(by_name("Q8_0"), 4).reshape(-1)
    data.flags.writeable = False
    tensor = StoredTensor("mapped", by_name("Q8_0"), (4, 32), data)
    tensor.dequantise()
    assert tensor.as_torch().data_ptr() == data.ctypes.data
    assert not recwarn.list


def mainline_types() -> Iterator[gguf.GGMLQuantizationType]:
    return (kind for kind in gguf.GGMLQuantizationType if by_ggml_type(kind) is None)


def test_every_mainline_type_that_is_not_read_is_known_by_name() -> None:
    assert {int(kind): kind.name for kind in mainline_types()}.items() <= MAINLINE.items()


def test_no_type_is_both_read_and_refused() -> None:
    supported = {quant.ggml_type for quant in FORMATS.values()}
    assert not supported & set(MAINLINE) and not supported & set(IK_LLAMA)
    assert not set(MAINLINE) & set(IK_LLAMA)


def test_a_refusal_names_the_type_and_what_to_use() -> None:
    assert why_unsupported(144, "") == "ik_llama.cpp-only type IQ4_KS (144); use a mainline quant"
    assert why_unsupported(40, "Q4_K") == (
        "type NVFP4 (40), which is not supported; supported are Q4_K"
    )
    assert type_name(9999) == "unknown"


def test_sizes_are_known_without_importing_torch() -> None:
    code = "import sys, hybrid_k2.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

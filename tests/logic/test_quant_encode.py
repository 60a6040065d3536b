"""Quantising offline: errors near the format's resolution, no worse than plain rounding."""

import gguf
import numpy as np
import pytest
import torch

from hybrid_k2.quant import FORMATS, QuantFormat, by_name

ENCODED = {name: quant for name, quant in FORMATS.items() if quant.encode}
BLOCKS = {name: quant for name, quant in ENCODED.items() if quant.block_size > 1}
DISTRIBUTIONS = ("normal", "laplace", "uniform", "outliers", "offset")


def weights_like(distribution: str, shape: tuple[int, ...] = (32, 1024)) -> np.ndarray:
    rng = np.random.default_rng(7)
    if distribution == "outliers":
        values = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.01, 20, 1)
    elif distribution == "offset":
        values = rng.standard_normal(shape) + 3
    else:
        values = getattr(rng, distribution)(size=shape)
    return (0.02 * values).astype(np.float32)


def decoded(quant: QuantFormat, encoded: np.ndarray) -> np.ndarray:
    return quant.dequantise(torch.from_numpy(encoded)).numpy()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def round_affine(weights: np.ndarray, group: int, top: int) -> np.ndarray:
    """Rounding to top + 1 levels between each group's extremes, scales in float64."""
    x = weights.reshape(-1, group).astype(np.float64)
    low = np.minimum(x.min(1, keepdims=True), 0)
    step = (x.max(1, keepdims=True) - low) / top
    return (np.rint((x - low) / step) * step + low).reshape(weights.shape)


def round_symmetric(weights: np.ndarray, group: int, half: int) -> np.ndarray:
    """Rounding to -half..half-1 with the largest weight at -half, scales in float64."""
    x = weights.reshape(-1, group).astype(np.float64)
    extreme = np.take_along_axis(x, np.abs(x).argmax(1, keepdims=True), axis=1)
    step = -extreme / half
    return (np.rint(x / step).clip(-half, half - 1) * step).reshape(weights.shape)


PLAIN = {
    "Q4_0": lambda weights: round_symmetric(weights, 32, 8),
    "Q4_1": lambda weights: round_affine(weights, 32, 15),
    "Q5_0": lambda weights: round_symmetric(weights, 32, 16),
    "Q5_1": lambda weights: round_affine(weights, 32, 31),
    "Q8_0": lambda weights: round_symmetric(weights, 32, 128),
    "Q4_K": lambda weights: round_affine(weights, 32, 15),
    "Q6_K": lambda weights: round_symmetric(weights, 16, 32),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("quant", BLOCKS.values(), ids=list(BLOCKS))
def test_the_error_is_at_most_a_tenth_above_plain_rounding(
    quant: QuantFormat, distribution: str
) -> None:
    weights = weights_like(distribution)
    plain = rms(PLAIN[quant.name](weights) - weights)
    assert rms(decoded(quant, quant.quantise(weights)) - weights) <= 1.1 * plain


def test_the_search_beats_plain_rounding_on_normal_weights() -> None:
    weights = weights_like("normal")
    for name in ("Q4_K", "Q6_K"):
        error = rms(decoded(by_name(name), by_name(name).quantise(weights)) - weights)
        assert error < 0.97 * rms(PLAIN[name](weights) - weights), name


@pytest.mark.parametrize("quant", ENCODED.values(), ids=list(ENCODED))
def test_zeros_and_what_a_format_can_hold_survive(quant: QuantFormat) -> None:
    zeros = np.zeros((2, 512), np.float32)
    assert np.array_equal(decoded(quant, quant.quantise(zeros)), zeros)
    constant = np.full((1, 512), 0.5, np.float32)
    # One float16 scale holds it, to half a unit in the last place and half a code.
    assert np.abs(decoded(quant, quant.quantise(constant)) - 0.5).max() <= 0.5 / 30


@pytest.mark.parametrize("quant", ENCODED.values(), ids=list(ENCODED))
def test_shapes_are_kept_and_every_block_is_independent(quant: QuantFormat) -> None:
    weights = weights_like("normal", (2, 3, 512))
    encoded = quant.quantise(weights)
    assert encoded.shape == (2, 3, quant.num_bytes(512)) and encoded.dtype == np.uint8
    assert np.array_equal(quant.quantise(weights[1, 2]), encoded[1, 2])


@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_simple_formats_are_the_gguf_packages_bytes(name: str) -> None:
    weights = weights_like("normal")
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(by_name(name).quantise(weights), theirs)


def test_what_cannot_be_written_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Q2_K"):
        by_name("Q2_K").quantise(np.zeros((1, 256), np.float32))
    with pytest.raises(ValueError, match="100 weights"):
        by_name("Q4_K").quantise(np.zeros((1, 100), np.float32))

"""Random stored weights of every quant type, and float64 oracles over them.

Weights are dequantised by the gguf package. Quantised types are random bytes with sane scales, so
types that the package cannot quantise are covered too. Knows nothing of the kernels but where a
block's scales lie, which it must set to keep random bytes finite.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Byte offsets of the half-float scales inside a block, and values that keep weights near 1 and,
# where there are minima or offsets, their mean near 0.
_HALF_SCALES = {
    "Q4_0": {0: 0.1},
    "Q4_1": {0: 0.1, 2: -0.75},
    "Q5_0": {0: 0.05},
    "Q5_1": {0: 0.05, 2: -0.775},
    "Q8_0": {0: 0.01},
    "Q2_K": {80: 0.05, 82: 0.075},
    "Q3_K": {108: 0.01},
    "Q4_K": {0: 0.002, 2: 0.015},
    "Q5_K": {0: 0.001, 2: 0.0155},
    "Q6_K": {208: 0.0005},
    "IQ1_S": {0: 0.1},
    "IQ2_XXS": {0: 0.02},
    "IQ2_XS": {0: 0.02},
    "IQ2_S": {0: 0.02},
    "IQ3_XXS": {0: 0.007},
    "IQ3_S": {0: 0.007},
    "IQ4_NL": {0: 0.015},
    "IQ4_XS": {0: 0.0008},
    "TQ1_0": {52: 1},
    "TQ2_0": {64: 1},
}
FLOAT_TYPES = ("F32", "F16", "BF16")


def block_shape(quant: str) -> tuple[int, int]:
    """(weights, bytes) of one block."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[quant]]


@dataclass(frozen=True)
class Stored:
    """`data` uint8 1-D as in a file, `weights` float64 in `shape`."""

    quant: str
    shape: tuple[int, ...]
    data: np.ndarray
    weights: np.ndarray


def random_stored(quant: str, shape: tuple[int, ...], rng: np.random.Generator) -> Stored:
    """Random blocks of `quant` for a tensor of `shape`; whole blocks along the last axis."""
    size, num_bytes = block_shape(quant)
    blocks = int(np.prod(shape)) // size
    if quant == "F32":
        raw = rng.standard_normal(blocks).astype(np.float32)
    elif quant == "F16":
        raw = rng.standard_normal(blocks).astype(np.float16)
    elif quant == "BF16":
        raw = (rng.standard_normal(blocks).astype(np.float32).view(np.uint32) >> 16).astype(
            np.uint16
        )
    else:
        raw = rng.integers(0, 256, (blocks, num_bytes), dtype=np.uint8)
        signs = rng.choice([-1, 1], blocks)
        for offset, value in _HALF_SCALES.get(quant, {}).items():
            raw[:, offset : offset + 2] = _halves(value * signs, rng)[:, None].view(np.uint8)
        if quant == "MXFP4":
            raw[:, 0] = rng.integers(124, 128, blocks)  # 2^(e - 128)
        if quant == "IQ1_M":  # the four nibbles of a half lie on top of the last four words
            bits = _halves(0.1 * signs, rng).view(np.uint16)
            for nibble, offset in enumerate((49, 51, 53, 55)):
                raw[:, offset] = (raw[:, offset] & 15) | (bits >> 4 * nibble & 15) << 4
    data = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    return Stored(quant, shape, data, dequantised(quant, data).astype(np.float64).reshape(shape))


def _halves(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float16, within a half of the values."""
    return (values * rng.uniform(0.5, 1.5, len(values))).astype(np.float16)


def dequantised(quant: str, data: np.ndarray) -> np.ndarray:
    """float32 weights by the gguf package."""
    return dequantize(data, GGMLQuantizationType[quant]).reshape(-1)


def product(stored: Stored, x: np.ndarray) -> np.ndarray:
    """x [..., T, cols] times weights [..., rows, cols], float64."""
    return x.astype(np.float64) @ np.swapaxes(stored.weights, -1, -2)


def product_tolerance(stored: Stored, x: np.ndarray) -> np.ndarray:
    """The largest error the design allows, per element of `product`.

    Integer types round each activation to a step of max / 127 of its block of 32: half a step times
    |w|. All types then add float32 rounding; codes offset by up to 128 make intermediate sums
    larger than the terms, hence the factor.
    """
    weights, x = np.abs(stored.weights), np.abs(x.astype(np.float64))
    eps = np.finfo(np.float32).eps
    cols = x.shape[-1]
    if stored.quant in FLOAT_TYPES:
        return (cols + 4) * eps * (x @ np.swapaxes(weights, -1, -2)) + 1e-30
    largest = x.reshape(*x.shape[:-1], -1, 32).max(-1)
    step = np.repeat(largest / 127, 32, -1)
    weight_range = np.repeat(weights.reshape(*weights.shape[:-1], -1, 32).max(-1), 32, -1) + weights
    rounding = 16 * eps * (np.repeat(largest, 32, -1) @ np.swapaxes(weight_range, -1, -2))
    return 0.5 * (1 + 1e-5) * (step @ np.swapaxes(weights, -1, -2)) + rounding + 1e-30


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))

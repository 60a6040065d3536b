"""Random stored weights of a chosen spread, for measuring speed and for tests: made without a
quantiser, a gigabyte a second.

Codes are random bits; the block's scales are set so that the weights have about mean 0 and the
standard deviation asked for. Knows no tensors and no files.
"""

from __future__ import annotations

import numpy as np
import torch

from hybrid_k2.quant.format import QuantFormat

_SAMPLE_BLOCKS = 4096


def random_blocks(
    rng: np.random.Generator, quant: QuantFormat, num_blocks: int, std: float
) -> np.ndarray:
    """uint8 [num_blocks, block_bytes] whose weights have about the standard deviation `std`.

    MXFP4, whose scales are powers of two, comes as near as it can.
    """
    if quant.block_size == 1:
        weights = rng.standard_normal((num_blocks, 1), np.float32) * np.float32(std)
        return quant.quantise(weights)
    return _with_scales(rng, quant, num_blocks, _scales(quant, std))


def _with_scales(
    rng: np.random.Generator, quant: QuantFormat, num_blocks: int, scales: tuple[float, ...]
) -> np.ndarray:
    num_bytes = num_blocks * quant.block_bytes
    words = rng.integers(0, 1 << 64, -(-num_bytes // 8), dtype=np.uint64, endpoint=False)
    blocks = words.view(np.uint8)[:num_bytes].reshape(num_blocks, quant.block_bytes)
    if quant.set_scale:
        quant.set_scale(blocks, *scales)
        return blocks
    for offset, scale in zip(quant.half_offsets, scales, strict=True):
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks


def _scales(quant: QuantFormat, std: float) -> tuple[float, ...]:
    """One scale: weights = d * a, and codes are symmetric. Two: weights = d * a - dmin * b."""

    def decoded(*scales: float) -> torch.Tensor:
        blocks = _with_scales(
            np.random.Generator(np.random.SFC64(1)), quant, _SAMPLE_BLOCKS, scales
        )
        return quant.dequantise(torch.from_numpy(blocks))

    if len(quant.half_offsets) < 2:
        return (std / float(decoded(1.0).std()),)
    ratio = float(decoded(1.0, 0.0).mean() / -decoded(0.0, 1.0).mean())
    d = std / float(decoded(1.0, ratio).std())
    return d, d * ratio

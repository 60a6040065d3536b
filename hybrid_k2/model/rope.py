"""Rotary positions with YaRN (arXiv 2309.00071), as K2 uses them: interleaved pairs (2i, 2i + 1),
as in llama.cpp.

The Hugging Face code de-interleaves before rotating; scores are the same, the layout of a cached
k_pe is not.
"""

import math

import torch

from hybrid_k2.config import K2Config, YarnConfig, yarn_mscale


class Rope:
    """inv_freq: [qk_rope_head_dim / 2] float64, radians per position.

    attention_factor: what cos and sin are multiplied by.
    """

    def __init__(self, config: K2Config) -> None:
        self.inv_freq = inverse_frequencies(
            config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
        )
        self.attention_factor = attention_factor(config.rope_scaling)

    def rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """positions: [T] int64. Returns what to multiply pairs with, [T, dim / 2] complex64.

        The angle is taken in float64: at position 131,072 a float32 angle is off by up to 0.008
        radians.
        """
        angle = positions[:, None].double() * self.inv_freq.to(positions.device)
        scale = torch.full_like(angle, self.attention_factor)
        return torch.polar(scale, angle).to(torch.complex64)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Multiplies the pairs (2i, 2i + 1), read as complex numbers; one pass instead of a dozen.

    x: [T, ..., dim] float; rotation: [T, dim / 2] complex. Returns the shape of x.
    """
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    rotation = rotation.view(x.shape[0], *[1] * (x.dim() - 2), -1)
    return torch.view_as_real(pairs * rotation).flatten(-2)


def inverse_frequencies(dim: int, theta: float, yarn: YarnConfig | None) -> torch.Tensor:
    """Fast pairs keep their frequency, slow ones are divided by yarn.factor, with a linear ramp
    between the betas.
    """
    plain = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if yarn is None:
        return plain
    low = max(math.floor(_pair_turning(yarn.beta_fast, dim, theta, yarn)), 0)
    high = min(math.ceil(_pair_turning(yarn.beta_slow, dim, theta, yarn)), dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def attention_factor(yarn: YarnConfig | None) -> float:
    """What cos and sin are multiplied by: 1.0 for every K2, whose mscale equals its
    mscale_all_dim.
    """
    if yarn is None:
        return 1.0
    return yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)


def _pair_turning(turns: float, dim: int, theta: float, yarn: YarnConfig) -> float:
    """The (fractional) pair that makes this many full turns over the original context."""
    original = yarn.original_max_position_embeddings
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

"""What a page of cached latents holds: 64 rows, one a token, as they are or in 8 bits.

A row is the normalised latent c and the rotated k_pe. In 8 bits it is int8 [latent + 16]: the codes
of both, then two float32 scales, c's and k_pe's, then 8 bytes of nothing that keep rows aligned to
16 bytes. One scale for each part suffices because c is normalised, so that its largest number is a
few times its mean, and lets attention multiply scores, not keys. For normal numbers the error is
0.8% of a row's norm; e4m3's, of the same size, would be 2.6%. Knows no sequences and no attention.
"""

from __future__ import annotations

import torch

PAGE_TOKENS = 64
SCALE_BYTES = 16


def is_quantised(pages: torch.Tensor) -> bool:
    """Whether pages hold rows in 8 bits."""
    return pages.dtype == torch.int8


def latent_width(pages: torch.Tensor) -> int:
    """Numbers in a row, which has SCALE_BYTES more columns where it is quantised."""
    return pages.shape[-1] - (SCALE_BYTES if is_quantised(pages) else 0)


def quantise_rows(latents: torch.Tensor, rank: int) -> torch.Tensor:
    """Rows [T, latent] of any float type, c in the first `rank` columns, in 8 bits."""
    latents = latents.float()
    parts = [latents[:, :rank], latents[:, rank:]]
    scales = torch.stack([part.abs().amax(1) / 127 for part in parts], dim=1)  # [T, 2]
    codes = [
        (part / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        for part, scale in zip(parts, scales.split(1, dim=1), strict=True)
    ]
    padded = torch.nn.functional.pad(scales, (0, 2)).view(torch.int8)  # [T, 16]
    return torch.cat([*codes, padded], dim=1)


def dequantise_rows(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """The inverse: int8 [T, latent + 16] -> float32 [T, latent]."""
    scales = rows[:, -SCALE_BYTES:].contiguous().view(torch.float32)
    c, k_pe = rows[:, :rank].float(), rows[:, rank:-SCALE_BYTES].float()
    return torch.cat([c * scales[:, :1], k_pe * scales[:, 1:2]], dim=1)

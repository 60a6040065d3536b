"""TQ1_0: 256 ternary weights, five to a byte, and one float16 scale; w = d * (q - 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_k2.quant.blocks import half
from hybrid_k2.quant.format import QuantFormat

if TYPE_CHECKING:
    from torch import Tensor


def decode(blocks: Tensor) -> Tensor:
    """Layout: 32 bytes with weights 0-159 | 16 with 160-239 | 4 with 240-255 (four each) | d f16.

    A byte is a fraction of 256 in base 3: digit n is the whole part of 3 * (byte * 3^n mod 256) /
    256. Of a run of k bytes, byte i holds the weights k n + i.
    """
    import torch

    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=blocks.device).unsqueeze(-1)
    runs = (
        (blocks[:, None, :32] * powers),  # uint8 arithmetic is mod 256
        (blocks[:, None, 32:48] * powers),
        (blocks[:, None, 48:52] * powers[:4]),
    )
    fractions = torch.cat([run.flatten(1) for run in runs], dim=1).int()  # [N, 256]
    return half(blocks[:, 52:54]) * (((fractions * 3) >> 8).float() - 1)


TQ1_0 = QuantFormat("TQ1_0", 34, 256, 54, decode, half_offsets=(52,))

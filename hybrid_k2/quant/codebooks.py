"""The tables into which the codebook formats' codes point, and their signs, on any device.

The gguf package holds the numbers; nothing is copied here. Knows no block layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybrid_k2.quant.blocks import bits_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def grid_values(name: str) -> np.ndarray:
    """float32 [entries, weights of a run]: the magnitudes (ternary values for IQ1_S) of a grid."""
    import gguf

    source = getattr(gguf.quants, name)
    source.init_grid()  # decodes the packed form, once
    return source.grid.reshape(source.grid_shape)


def grid(name: str, device: torch.device) -> Tensor:
    """grid_values(name) on `device`."""
    import torch

    return torch.from_numpy(grid_values(name)).to(device)


def steps(name: str, device: torch.device) -> Tensor:
    """float32 [16]: the values of a four-bit code of IQ4_NL or MXFP4."""
    import gguf
    import torch

    return torch.tensor(getattr(gguf.quants, name).kvalues, dtype=torch.float32, device=device)


def even_signs(seven: Tensor) -> Tensor:
    """int32 [...] below 128 -> uint8 [...]: the eighth sign makes the number of minuses even."""
    import torch

    parity = seven ^ (seven >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return (seven | (parity << 7)).to(torch.uint8)


def signs(minuses: Tensor) -> Tensor:
    """uint8 [..., n] of bits, one a weight -> float32 [..., 8n] of 1 and -1."""
    return 1 - 2 * bits_of(minuses).float()

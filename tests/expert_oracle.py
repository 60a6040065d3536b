"""What kernels/experts.grouped_experts computes, by torch: for tests of what calls it."""

from typing import Any

import numpy as np
import torch

from hybrid_k2.backends.reference import swiglu


def grouped_experts(
    x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, table: Any
) -> torch.Tensor:
    """The experts of a table that lie in VRAM, for each of a few tokens: as the kernel's own."""

    def matrix(part: Any, expert: int) -> torch.Tensor:
        (rows, cols), form = part.shape, part.quant
        blocks = part.data[part.offsets[expert] :][: form.num_bytes(rows * cols)]
        return form.dequantise(blocks.view(rows, -1))

    y = torch.zeros_like(x)
    for token, k in np.ndindex(*expert_ids.shape):
        expert = int(expert_ids[token, k])
        if expert >= 0 and table.gate.offsets[expert] >= 0:
            gate, up, down = (matrix(part, expert) for part in (table.gate, table.up, table.down))
            y[token] += weights[token, k] * swiglu(x[token], gate, up, down)
    return y

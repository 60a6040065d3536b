"""One layer of routed experts with synthetic weights, and random tokens for it.

All experts hold the same bits, which no cache can tell, since they lie in memory of their own.
Knows neither who computes the layer nor how it is timed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from hybrid_k2.backends import registry
from hybrid_k2.backends.weight_memory import allocate
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer of experts; the defaults are Kimi K2's."""

    hidden_size: int = 7168
    width: int = 2048
    num_experts: int = 384
    experts_per_token: int = 8

    @property
    def expert_weights(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden_size * self.width


@dataclass(frozen=True, slots=True)
class Layer:
    """gate, up: [experts, width, hidden].  down: [experts, hidden, width].  In blocks of quant."""

    shape: LayerShape
    quant: str
    gate: StoredTensor
    up: StoredTensor
    down: StoredTensor


@dataclass(frozen=True, slots=True)
class Inputs:
    """x: [tokens, hidden] float32.  ids: [tokens, K] int32.  weights: [tokens, K] float32."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def distinct_experts(self) -> int:
        """How many experts' weights these tokens need."""
        return len(self.ids.unique())


def expert_bytes(quant: str, shape: LayerShape) -> int:
    """Stored bytes of one expert."""
    return by_name(quant).num_bytes(shape.expert_weights)


def synthetic_layer(
    rng: np.random.Generator, quant: str, shape: LayerShape, huge_pages: bool = True
) -> Layer:
    """Random blocks in anonymous memory. Raises PlanError where there is no room for them."""

    def experts(rows: int, cols: int) -> StoredTensor:
        form = by_name(quant)
        pages = registry.RAM_HUGE if huge_pages else registry.RAM
        data = allocate(shape.num_experts * form.num_bytes(rows * cols), pages)
        blocks = random_blocks(rng, form, rows * cols // form.block_size, cols**-0.5)
        data.reshape(shape.num_experts, -1)[:] = blocks.reshape(1, -1)
        return StoredTensor("synthetic", form, (shape.num_experts, rows, cols), data)

    gate, up = (experts(shape.width, shape.hidden_size) for _ in range(2))
    return Layer(shape, quant, gate, up, experts(shape.hidden_size, shape.width))


def random_inputs(rng: np.random.Generator, num_tokens: int, shape: LayerShape) -> Inputs:
    """Gaussian tokens, each with distinct experts drawn from all alike."""
    keys = rng.random((num_tokens, shape.num_experts), np.float32)
    chosen = keys.argpartition(shape.experts_per_token - 1, axis=1)[:, : shape.experts_per_token]
    x = rng.standard_normal((num_tokens, shape.hidden_size), np.float32)
    return Inputs(
        torch.from_numpy(x),
        torch.from_numpy(np.ascontiguousarray(chosen, np.int32)),
        torch.full((num_tokens, shape.experts_per_token), 1 / shape.experts_per_token),
    )

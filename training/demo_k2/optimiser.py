"""What turns gradients into steps: Muon for matrices as Kimi K2 was trained, AdamW for the rest.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix; scaled as
in Moonlight (arXiv 2502.16982), so that one learning rate fits both. Also here: the balancing of
experts without a loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Knows nothing of data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hybrid_k2.config import K2Config

MOMENTUM = 0.95
# Quintic Newton-Schulz: five steps bring singular values between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NOT_BY_MUON = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "norm.weight")


class Optimiser:
    """Steps a dictionary of float32 weights; those without gradient are left alone."""

    def __init__(self, weights: Mapping[str, Tensor], weight_decay: float) -> None:
        self._weight_decay = weight_decay
        matrices: dict[tuple[int, ...], list[Tensor]] = {}
        others: list[Tensor] = []
        for name, weight in weights.items():
            if not weight.requires_grad:
                continue
            if name.endswith(NOT_BY_MUON):
                others.append(weight)
            else:
                matrices.setdefault(tuple(weight.shape), []).append(weight)
        self._groups = [
            (group, torch.zeros_like(torch.stack(group))) for group in matrices.values()
        ]
        is_cuda = others[0].is_cuda
        self._rate = torch.zeros((), device=others[0].device)
        self._adam = torch.optim.AdamW(
            others,
            lr=self._rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=is_cuda,
            foreach=False if not is_cuda else None,
            capturable=is_cuda,
        )

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the steps to come; kept on the device, where a graph reads it."""
        self._rate.fill_(learning_rate)

    @torch.no_grad()
    def step(self) -> None:
        """One step with the gradients that are there, which it then drops."""
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for group, momentum in self._groups:
            gradient = torch.stack([weight.grad for weight in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp_(momentum, MOMENTUM))
            rows, columns = update.shape[-2:]
            update = update.float() * (self._rate * (0.2 * max(rows, columns) ** 0.5))
            torch._foreach_mul_(group, 1 - self._rate * self._weight_decay)
            torch._foreach_sub_(group, list(update.unbind()))
            for weight in group:
                weight.grad = None


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """[..., r, c] -> the same shape: each matrix with its singular values brought near 1."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


@torch.no_grad()
def balance(
    weights: Mapping[str, Tensor], config: K2Config, loads: list[Tensor], step: Tensor
) -> None:
    """Lowers the selection bias of experts with more tokens than the mean, raises the others'."""
    for layer_idx, load in enumerate(loads, config.first_k_dense_replace):
        bias = weights[f"model.layers.{layer_idx}.mlp.gate.e_score_correction_bias"]
        error = load.float().mean() - load
        bias += step * error.sign()
        bias -= bias.mean()

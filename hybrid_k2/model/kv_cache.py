"""One sequence's memory: per layer and token the normalised latent and the rotated k_pe, side by
side.

Grows by doubling, so a short chat in a 128K context costs what it uses. Knows nothing of attention.
"""

from collections.abc import Sequence

import torch


class LatentCache:
    """Rows [0, length) of every layer are valid. Owned by one sequence at a time."""

    def __init__(
        self,
        placements: Sequence[tuple[torch.device, torch.dtype]],
        latent_dim: int,
        first_rows: int = 256,
    ) -> None:
        """placements: device and dtype of each layer's rows.  latent_dim: numbers per token and
        layer.
        """
        self.length = 0
        self._rows = [
            torch.empty(first_rows, latent_dim, dtype=dtype, device=device)
            for device, dtype in placements
        ]

    @property
    def num_bytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in self._rows)

    def reserve(self, num_tokens: int) -> None:
        """Makes room for `num_tokens` rows a layer in all."""
        capacity = self._rows[0].shape[0]
        if num_tokens <= capacity:
            return
        capacity = max(num_tokens, 2 * capacity)
        for layer_idx, old in enumerate(self._rows):
            grown = old.new_empty(capacity, old.shape[1])
            grown[: self.length] = old[: self.length]
            self._rows[layer_idx] = grown

    def write(self, layer_idx: int, start: int, latents: torch.Tensor) -> torch.Tensor:
        """Stores rows [start, start + T) of a layer; returns the layer's rows [0, start + T).

        latents: [T, latent_dim] float32 on the layer's device.
        """
        end = start + latents.shape[0]
        self._rows[layer_idx][start:end] = latents
        return self._rows[layer_idx][:end]

    def truncate(self, num_tokens: int) -> None:
        """Forgets every token from `num_tokens` on."""
        self.length = min(self.length, num_tokens)

    def copy(self, num_tokens: int) -> "LatentCache":
        """A cache of its own with the first `num_tokens` tokens of this one."""
        other = LatentCache(
            [(rows.device, rows.dtype) for rows in self._rows], self._rows[0].shape[1], 0
        )
        other.reserve(max(256, num_tokens))
        for mine, theirs in zip(self._rows, other._rows, strict=True):
            theirs[:num_tokens] = mine[:num_tokens]
        other.length = num_tokens
        return other

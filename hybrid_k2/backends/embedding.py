"""The token embedding: stays mapped where it lies on disk; only the rows of this step's tokens are
dequantised, on the device where they are wanted.
"""

from collections.abc import Mapping, Sequence

import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.quant.stored import StoredTensor


class Embedding:
    def __init__(
        self, tensors: Mapping[str, StoredTensor], context: BackendContext, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._weight = tensors["weight"]

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids: [T] int64, CPU. Returns [T, hidden] float32 on `device`."""
        return self._weight.rows(token_ids, self.device)

    def rows(self, token_ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The same on the CPU."""
        return self._weight.rows(token_ids)

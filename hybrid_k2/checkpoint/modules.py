"""`ModuleSpec`: one piece of the model as the checkpoint stores it, before it has a place to run.

Owns the list of K2's modules, the tensors each needs and their shapes. Knows no file format and no
backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_k2.quant.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module of the model: its class (which rules match and backends serve) and its tensors."""

    name: str
    module_class: str
    layer_idx: int | None
    tensors: Mapping[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all its tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

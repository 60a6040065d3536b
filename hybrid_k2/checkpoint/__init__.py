"""Files -> named, checked, mapped tensors of a Kimi K2. Knows no backend, no engine and no text."""

from hybrid_k2.checkpoint.checkpoint import Checkpoint, open_checkpoint
from hybrid_k2.checkpoint.modules import ModuleSpec

__all__ = ["Checkpoint", "ModuleSpec", "open_checkpoint"]

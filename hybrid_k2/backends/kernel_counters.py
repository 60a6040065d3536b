"""What the CPU kernels tell of themselves, for whoever watches; without torch, so that the engine
can name it before a model is loaded.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelCounters:
    """What CPU kernels have done since they were opened.

    busy_s: of wall time.  weight_bytes: stored weights that products read; an expert's once for
    all tokens of a call.
    experts: experts of tokens, computed here; a feed-forward without a router counts as one.
    skipped: those given as -1, which are the GPU's, from its memory or streamed.
    """

    busy_s: float = 0.0
    weight_bytes: int = 0
    experts: int = 0
    skipped: int = 0

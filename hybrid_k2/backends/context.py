"""What every backend is given besides its tensors: the model's shapes, the run's settings, the CPU
kernels.

Knows nothing of files, rules or the order in which modules run.
"""

from dataclasses import dataclass, field
from typing import Any

from hybrid_k2.backends.cpu_kernels import CpuKernels
from hybrid_k2.config import K2Config, RuntimeConfig


@dataclass(frozen=True, slots=True)
class BackendContext:
    """Shared by all backends of one engine; `kernels` is owned by the engine and outlives them.

    shared: what the modules of one engine make once, by the backend's name and device.
    """

    config: K2Config
    runtime: RuntimeConfig
    kernels: CpuKernels
    layer_idx: int | None = None
    shared: dict[str, Any] = field(default_factory=dict)

"""Run Kimi K2 on one workstation: attention on the GPU, experts on the CPU, placed by YAML rules.

This module owns the public names (`Engine`, `SamplingParams`) and the version. It imports nothing
until one of them is touched, so that `import hybrid_k2` and `hybrid-k2 --help` cost milliseconds
and need neither torch nor a server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_k2.api import Engine
    from hybrid_k2.engine.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = ["Engine", "SamplingParams", "__version__"]

_HOME = {"Engine": "hybrid_k2.api", "SamplingParams": "hybrid_k2.engine.sampling_params"}


def __getattr__(name: str) -> Any:
    """Imports a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

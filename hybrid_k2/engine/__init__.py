"""Token ids in, token ids out: loading, scheduling, sampling and the reuse of prefixes.

Knows nothing of text or HTTP, so that all of it is tested with integers.
"""

from hybrid_k2.engine.engine import EngineCore
from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.engine.sequence import RunningRequest, StepOutput
from hybrid_k2.engine.stats import CacheStats, EngineStats, TierStats

__all__ = [
    "CacheStats",
    "EngineCore",
    "EngineStats",
    "RunningRequest",
    "SamplingParams",
    "StepOutput",
    "TierStats",
]

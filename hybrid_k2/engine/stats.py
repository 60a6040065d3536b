"""How much an engine has computed and how long that took, and what its caches hold.

Owns the counters and the rates derived from them. Knows nothing of what it counts.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the engine was opened; `after - before` gives those of an interval.

    prefill_tokens: prompt tokens computed; cached_tokens: prompt tokens taken from the prefix cache
    instead.
    decode_tokens: tokens computed one at a time. A step that did both is split by token count.
    preemptions: times a request was set back because others needed its pages; what it had computed
    and the prefix cache lost is computed, and counted, again.
    """

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    def __add__(self, other: "EngineStats") -> "EngineStats":
        return _by_field(self, other, 1)

    def __sub__(self, other: "EngineStats") -> "EngineStats":
        return _by_field(self, other, -1)


@dataclass(frozen=True, slots=True)
class TierStats:
    """One place where KV pages lie: "memory" (the pool), "ram" or "disk".

    pages_in_use: held by running requests; pages_cached: kept for later ones, which may be in use,
    too. hit_tokens: prompt tokens taken from here instead of computed. evicted_pages: in all.
    """

    name: str
    pages_total: int
    pages_cached: int
    bytes_total: int
    bytes_used: int
    hit_tokens: int
    pages_in_use: int = 0
    evicted_pages: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The KV cache now. page_bytes: of `page_tokens` tokens over all layers.

    prompt_tokens: of all requests that ever started; hit_tokens: those of them not computed.
    """

    page_tokens: int
    page_bytes: int
    tiers: tuple[TierStats, ...]
    prompt_tokens: int
    hit_tokens: int
    preemptions: int


def _by_field(a: EngineStats, b: EngineStats, sign: int) -> EngineStats:
    return EngineStats(
        **{f.name: getattr(a, f.name) + sign * getattr(b, f.name) for f in fields(EngineStats)}
    )

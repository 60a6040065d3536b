"""How much an engine has computed and how long that took.

Owns the counters and the rates derived from them. Knows nothing of what it counts.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the engine was opened; `after - before` gives those of an interval.

    prefill_tokens: prompt tokens computed; cached_tokens: prompt tokens taken from the prefix cache
    instead.
    decode_tokens: tokens computed one at a time. A step that did both is split by token count.
    """

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    cached_tokens: int = 0

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


def _by_field(a: EngineStats, b: EngineStats, sign: int) -> EngineStats:
    return EngineStats(
        **{f.name: getattr(a, f.name) + sign * getattr(b, f.name) for f in fields(EngineStats)}
    )

"""Sets of layers in words: `0,3-5` and `30-` in a rule file, `[1-60]` in a table.

A set is kept as ranges, so that `0-999999999` costs nothing. Knows nothing of models.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_MAX_LAYER = 9999


@dataclass(frozen=True, slots=True)
class LayerSet:
    """Inclusive ranges; a last layer of None means "to the model's last"."""

    ranges: tuple[tuple[int, int | None], ...]

    def __contains__(self, layer_idx: int | None) -> bool:
        if layer_idx is None:
            return False
        return any(
            first <= layer_idx and (last is None or layer_idx <= last)
            for first, last in self.ranges
        )

    @property
    def highest(self) -> int:
        """The highest layer named."""
        return max(first if last is None else last for first, last in self.ranges)


def parse_layers(text: str) -> LayerSet:
    """`7`, `0,3-5`, `30-` -> LayerSet; raises ValueError naming the part that is wrong."""
    ranges: list[tuple[int, int | None]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:(-)\s*([0-9]{1,4})?\s*)?", part)
        if not match:
            raise ValueError(
                f"layers {part.strip()[:40]!r} is not a layer (0 to {_MAX_LAYER}) or a range; "
                'write for example 7, "0,3-5" or "30-"'
            )
        first = int(match[1])
        last = first if not match[2] else int(match[3]) if match[3] else None
        if last is not None and last < first:
            raise ValueError(f"layers {part.strip()!r} runs backwards; write {last}-{first}")
        ranges.append((first, last))
    return LayerSet(tuple(ranges))


def format_layers(layers: Iterable[int]) -> str:
    """{0, 3, 4, 5} -> `0,3-5`: the shortest text that `parse_layers` reads back."""
    parts: list[list[int]] = []
    for layer in sorted(set(layers)):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)

"""How much of a text's end must wait, as it may begin something that is looked for."""

from collections.abc import Iterable


def num_held_back(text: str, wanted: Iterable[str]) -> int:
    """Returns how many characters at the end of `text` begin one of `wanted`, less than all."""
    return max((_overlap(text, whole) for whole in wanted), default=0)


def _overlap(text: str, whole: str) -> int:
    start = text.find(whole[0], max(0, len(text) - len(whole) + 1))
    while start >= 0 and not whole.startswith(text[start:]):
        start = text.find(whole[0], start + 1)
    return len(text) - start if start >= 0 else 0

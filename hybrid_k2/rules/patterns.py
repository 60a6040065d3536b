"""Regular expressions from strangers: Python's syntax, searched under a time limit.

`(a|aa)+$` on eighty characters runs for years in `re`, which cannot be stopped; the `regex` package
can be, but expands counted and nested repeats while compiling, so those are bounded first.
"""

import re
import time
from collections.abc import Sequence

import regex

from hybrid_k2.errors import BadInputError

MAX_LENGTH = 512
_MAX_REPEATS = 1000  # of all {n} multiplied; module names have under 80 characters
_MAX_DEPTH = 8
SECONDS = 1.0  # for all rules on all names; the shipped files and theirs take under 0.1


class NamePattern:
    """A pattern that is cheap to compile and cannot run long."""

    def __init__(self, text: str) -> None:
        """Raises BadInputError where `text` is no pattern of Python's `re` or is too expensive."""
        self.text = text
        _check(text)
        try:
            re.compile(text)  # the syntax that users know; `regex` has more
            self._compiled = regex.compile(text, cache_pattern=False)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise BadInputError(f"bad regular expression {_short(text)!r}: {error}") from None

    def search(self, names: Sequence[str], deadline: float) -> list[bool]:
        """For each name whether the pattern matches anywhere in it (^ and $ anchor it).

        Raises BadInputError at the deadline, a time of time.perf_counter().
        """
        found = []
        for name in names:
            try:
                timeout = max(deadline - time.perf_counter(), 1e-3)
                found.append(self._compiled.search(name, timeout=timeout) is not None)
            except TimeoutError:
                raise BadInputError(
                    f"regular expression {_short(self.text)!r}: the rules' expressions take over "
                    f"{SECONDS} s on the model's names; remove nested or overlapping repeats"
                ) from None
        return found


def _check(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise BadInputError(
            f"regular expression of {len(text)} characters; at most {MAX_LENGTH} are allowed"
        )
    plain = re.sub(r"\\.", "", text)
    repeats = 1
    for inner in re.findall(r"\{([^{}]*)", plain):
        counts = [int(n) for n in re.findall(r"\d+", inner)]
        repeats *= max([1, *counts])
    depth = deepest = 0
    for character in plain:
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if repeats > _MAX_REPEATS or deepest > _MAX_DEPTH:
        raise BadInputError(
            f"regular expression {_short(text)!r} is too expensive: {repeats} repeats and groups "
            f"nested {deepest} deep; at most {_MAX_REPEATS} and {_MAX_DEPTH} are allowed"
        )
    if re.search(r"\{(?!\d*,?\d*\})", plain):
        raise BadInputError(f"regular expression {_short(text)!r}: write a literal {{ as \\{{")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

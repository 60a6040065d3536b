"""What the engine asks of a constraint: which tokens may follow, and whether the answer may end.

Only the two protocols. The engine knows nothing of grammars; `text/` has some for JSON and for tool
calls. The sampler, which uses them, decides what a token that ends an answer is.
"""

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """One answer's constraint, which follows the answer token by token."""

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""

    @property
    def is_done(self) -> bool:
        """Whether the answer must end here, as nothing may follow."""

    def mask(self) -> np.ndarray | None:
        """bool [ids], True for what may come next; None where any token may."""

    def accept(self, token_id: int) -> None:
        """Takes the answer's next token, which mask() allowed and which does not end the answer."""


class Grammar(Protocol):
    """What answers must look like; immutable, so that the choices of a request share it."""

    def start(self) -> Constraint:
        """The constraint of an answer without a token. Cheap: the engine's thread calls it."""

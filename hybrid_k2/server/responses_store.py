"""The Responses that a client may name again, in memory only: the latest ones.

Knows nothing of how a Response is made.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_k2.server.errors import ApiError


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """response: the object as it was sent; items: the whole conversation, its output included."""

    response: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]


class ResponseStore:
    """Belongs to the event loop. The one longest unused goes first when there are too many."""

    def __init__(self, max_responses: int) -> None:
        self._max_responses = max_responses
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._running: dict[str, Callable[[], None]] = {}

    def put(self, stored: StoredResponse) -> None:
        self._stored[stored.response["id"]] = stored
        while len(self._stored) > self._max_responses:
            self._stored.popitem(last=False)

    def get(self, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises a 404 where it was never stored, or is forgotten."""
        if response_id not in self._stored:
            raise ApiError(
                404,
                f"response {response_id[:80]!r} is not stored here; the latest "
                f"{self._max_responses} are, until the server ends, unless 'store' was false",
                "not_found_error",
                code="previous_response_not_found" if param else "not_found",
                param=param,
            )
        self._stored.move_to_end(response_id)
        return self._stored[response_id]

    def delete(self, response_id: str) -> None:
        self.get(response_id)
        del self._stored[response_id]

    def started(self, response_id: str, cancel: Callable[[], None]) -> None:
        """Makes a Response that is being written cancellable, until ended()."""
        self._running[response_id] = cancel

    def ended(self, response_id: str) -> None:
        self._running.pop(response_id, None)

    def cancel(self, response_id: str) -> bool:
        """Ends a Response that is being written; False where it is not."""
        cancel = self._running.get(response_id)
        if cancel is not None:
            cancel()
        return cancel is not None

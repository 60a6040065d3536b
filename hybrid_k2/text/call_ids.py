"""Ids of tool calls as K2 was trained on them: functions.<name>:<running number in the dialogue>.

Foreign ids in a history make the model invent ids of that kind, and then malformed calls. So the
template renames a history's ids for the model, and new calls get ids that continue the count.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class CallIds:
    """The calls of one dialogue, counted in order from 0."""

    def __init__(self) -> None:
        self._count = 0
        self._new_of_old: dict[str, str] = {}

    @classmethod
    def after(cls, messages: Sequence[Mapping[str, Any]]) -> "CallIds":
        """Returns a count that continues a history, of which the template has found no fault."""
        call_ids = cls()
        for message in messages:
            calls = message.get("tool_calls") if message["role"] == "assistant" else None
            for call in calls or ():
                call_ids.rename(call["function"]["name"], call.get("id") or "")
        return call_ids

    @property
    def count(self) -> int:
        """The calls so far, which is the number of the next one."""
        return self._count

    def rename(self, name: str, old: str) -> str:
        """Returns the id by which the model knows the dialogue's next call, which had id `old`."""
        new = f"functions.{name}:{self._count}"
        self._count += 1
        self._new_of_old[old] = new
        return new

    def renamed(self, old: str) -> str:
        """Returns the new id of an earlier call, an unknown one as it is."""
        return self._new_of_old.get(old, old)

    def new(self, name: str) -> str:
        """Returns the id of a call the model makes now, unlike any that a client holds.

        It may hold a later number than the count, where the beginning of a dialogue was cut off.
        """
        while (call_id := f"functions.{name}:{self._count}") in self._new_of_old:
            self._count += 1
        return self.rename(name, call_id)

"""The progress bar that commands show while a model loads; nothing where stderr is no terminal.

Knows the shape of Engine.open's progress calls, not what loads.
"""

from typing import Any, TextIO

import click


class LoadingBar:
    """A bar for each phase, in bytes. A context manager, called as Engine.open calls progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = stream.isatty()
        self._bar: Any = None
        self._phase = ""

    def __enter__(self) -> "LoadingBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def __call__(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Draws that `done_bytes` of `total_bytes` of a phase are done."""
        if not self._is_shown:
            return
        if phase != self._phase:
            self._finish()
            self._phase = phase
            self._bar = click.progressbar(
                length=max(total_bytes, 1), label=phase, file=self._stream, show_eta=True
            )
            self._bar.__enter__()
        self._bar.update(done_bytes - self._bar.pos)

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar, self._phase = None, ""

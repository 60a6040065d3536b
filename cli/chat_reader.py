"""Where the lines of an interactive chat come from: prompt_toolkit where installed, else readline.

Owns the history file, which only its owner may read. Knows nothing of what the lines mean.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_MAX_HISTORY_LINES = 2000


@contextlib.contextmanager
def open_reader(history: Path | None) -> Iterator[Callable[[str], str]]:
    """Yields read(prompt) -> line, with editing and, if `history` is given, lines of earlier chats.

    read raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C. A history that cannot be written
    is reported once and done without.
    """
    if history is not None and not _make_private(history):
        history = None
    try:
        import prompt_toolkit
    except ImportError:
        with _readline(history) as read:
            yield read
    else:
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        store = InMemoryHistory() if history is None else FileHistory(history)
        yield prompt_toolkit.PromptSession(history=store).prompt


@contextlib.contextmanager
def _readline(history: Path | None) -> Iterator[Callable[[str], str]]:
    try:
        import readline
    except ImportError:  # a Python built without it: lines still come, without editing
        yield input
        return
    readline.set_history_length(_MAX_HISTORY_LINES)
    if history is not None:
        with contextlib.suppress(OSError):  # libedit refuses an empty file
            readline.read_history_file(history)
    try:
        yield input
    finally:
        if history is not None:
            readline.write_history_file(history)


def _make_private(file: Path) -> bool:
    """Creates the file if need be and takes it from everyone but its owner; False if impossible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        file.chmod(0o600)
    except OSError as error:
        logger.warning("%s: no chat history: %s", file, error.strerror)
        return False
    return True

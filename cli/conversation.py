"""One conversation: its messages and its newest answer, asking, saving, loading.

Who answers is a subclass's business: `chat_session.py` has a model in this process,
`remote_session.py` a server. Knows nothing of terminals, of click or of how text is shown.
"""

import json
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid_k2.errors import BadInputError, HybridK2Error

if TYPE_CHECKING:
    from hybrid_k2.engine.stats import EngineStats
    from hybrid_k2.text import Delta

FinishReason = Literal["stop", "length", "interrupted"]

_FORMAT = "hybrid-k2 chat"
_VERSION = 1
_MAX_FILE_BYTES = 64 << 20  # far above what any context can hold


@dataclass(slots=True)
class Answer:
    """The newest answer, filled in while it arrives; stats are for it alone."""

    prompt_tokens: int = 0
    content: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason = "interrupted"
    stats: "EngineStats | None" = None

    def add(self, delta: "Delta") -> None:
        """Takes a piece of the answer in."""
        if delta.channel == "reasoning":
            self.reasoning += delta.text
        else:
            self.content += delta.text

    def message(self) -> dict[str, str]:
        message = {"role": "assistant", "content": self.content}
        return message | ({"reasoning_content": self.reasoning} if self.reasoning else {})


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far; system: None leaves the prompt to whoever answers."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: Answer | None = None

    @property
    def name(self) -> str:
        """The model's."""
        raise NotImplementedError

    @property
    def context(self) -> int | None:
        """The most tokens that prompt and answer may have together; None where nobody says."""
        raise NotImplementedError

    @property
    def default_system(self) -> str:
        """The system prompt where none is set."""
        raise NotImplementedError

    @property
    def total(self) -> "EngineStats":
        """Of all answers since the start."""
        raise NotImplementedError

    def _begin(self, messages: list[dict[str, str]]) -> tuple[Answer, Generator["Delta"]]:
        """An answer, and what yields its pieces and fills in its counts. Raises what refuses it."""
        raise NotImplementedError

    def ask(self, text: str) -> Iterator["Delta"]:
        """Yields the answer to `text` as it arrives; closing the iterator ends it where it is.

        What came out before an interruption stays in the conversation; a question without any
        answer does not, nor does one whose answer failed. Raises ContextLengthError where the
        conversation does not fit the context, and whatever goes wrong with the answer.
        """
        question = {"role": "user", "content": text}
        answer, deltas = self._begin(self._with_system([*self.messages, question]))
        self.answer = answer
        try:
            for delta in deltas:
                answer.add(delta)
                yield delta
        except (KeyboardInterrupt, GeneratorExit):
            deltas.close()
            if answer.content:
                self.messages += [question, answer.message()]
            raise
        self.messages += [question, answer.message()]

    def reset(self) -> None:
        """Forgets the conversation; the system prompt stays."""
        self.messages.clear()
        self.answer = None

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON, whole or not at all; HybridK2Error says why not."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.name,
            "system": self.system,
            "messages": self.messages,
        }
        _write_whole(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Replaces the conversation by a saved one; BadInputError names what is wrong with it."""
        document = _read_document(path)
        system, messages = document.get("system"), document.get("messages")
        if system is not None and not isinstance(system, str):
            raise BadInputError(f"{path}: system must be a string or null")
        if not isinstance(messages, list):
            raise BadInputError(f"{path}: messages must be a list")
        for index, message in enumerate(messages):
            _check_message(message, "user" if index % 2 == 0 else "assistant", path, index)
        if len(messages) % 2:
            raise BadInputError(f"{path}: the last message is a question without an answer")
        self.system, self.messages, self.answer = system, messages, None

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.system is None:
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def _check_message(message: Any, role: str, path: Path, index: int) -> None:
    where = f"{path}: messages[{index}]"
    if not isinstance(message, dict) or message.get("role") != role:
        raise BadInputError(f"{where} must be an object whose role is {role!r}")
    if not isinstance(message.get("content"), str):
        raise BadInputError(f"{where}.content must be a string")
    if not isinstance(message.get("reasoning_content", ""), str):
        raise BadInputError(f"{where}.reasoning_content must be a string")


def _read_document(path: Path) -> dict[str, Any]:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MAX_FILE_BYTES:
            raise BadInputError(
                f"{path}: has {num_bytes:,} bytes, a saved chat at most {_MAX_FILE_BYTES:,}"
            )
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise BadInputError(f"{path}: not a chat saved by /save (format is not {_FORMAT!r})")
    if document.get("version") != _VERSION:
        raise BadInputError(
            f"{path}: version is {document.get('version')!r}, this program reads {_VERSION}"
        )
    return document


def _write_whole(path: Path, text: str) -> None:
    """Writes beside `path` and renames, so that a full disk leaves the old file as it was."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="replace",
            dir=path.parent,
            prefix=f".{path.name}.",
            delete=False,
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise HybridK2Error(
            f"{path}: not saved: {error.strerror}; a file that was there is unchanged"
        ) from error

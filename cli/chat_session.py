"""One conversation with one engine: messages, the next answer, what it cost, saving and loading.

Every turn renders the whole conversation and hands the engine all of its ids; the engine knows how
much of that it has computed before. Knows nothing of terminals, of click or of how text is shown.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid_k2.errors import BadInputError, HybridK2Error
from hybrid_k2.text import ChatTemplate, Delta, TextStream

if TYPE_CHECKING:
    from hybrid_k2 import Engine, SamplingParams
    from hybrid_k2.engine.stats import EngineStats

FinishReason = Literal["stop", "length", "interrupted"]

_FORMAT = "hybrid-k2 chat"
_VERSION = 1
_MAX_FILE_BYTES = 64 << 20  # far above what any context can hold


@dataclass(slots=True)
class Answer:
    """The newest answer, filled in while it arrives; stats are the engine's for it alone."""

    prompt_tokens: int
    content: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason = "interrupted"
    stats: "EngineStats | None" = None

    def message(self) -> dict[str, str]:
        message = {"role": "assistant", "content": self.content}
        return message | ({"reasoning_content": self.reasoning} if self.reasoning else {})


@dataclass(slots=True)
class ChatSession:
    """The conversation so far and the settings of the answers to come.

    engine: hybrid_k2.Engine or what looks like it.  params: their stop tokens are replaced by the
    tokenizer's.  stop: strings that end an answer.  system: None is the template's default.
    """

    engine: "Engine"
    template: ChatTemplate
    params: "SamplingParams"
    stop: tuple[str, ...] = ()
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: Answer | None = None

    def __post_init__(self) -> None:
        # A GGUF may name [EOS] as its only end; K2's chats end with <|im_end|>.
        self.params = replace(self.params, stop_token_ids=self.engine.tokenizer.eos_ids)
        TextStream(self.engine.tokenizer, self.stop)

    @property
    def context(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return self.engine.core.context

    def ask(self, text: str) -> Iterator[Delta]:
        """Yields the answer to `text` as it arrives; closing the iterator ends it where it is.

        What came out before an interruption stays in the conversation; a question without any
        answer does not, nor does one whose answer failed. Raises ContextLengthError where the
        conversation does not fit the context, and whatever the engine raises.
        """
        question = {"role": "user", "content": text}
        ids = self.template.render(
            self._with_system([*self.messages, question]), max_tokens=self.context
        )
        answer = self.answer = Answer(prompt_tokens=len(ids))
        try:
            yield from self._generate(ids, answer)
        except (KeyboardInterrupt, GeneratorExit):
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
            "model": self.engine.name,
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

    def _generate(self, ids: list[int], answer: Answer) -> Iterator[Delta]:
        stream = TextStream(self.engine.tokenizer, self.stop, self.template.thinking)
        before = self.engine.core.stats
        try:
            with contextlib.closing(self.engine.generate(ids, self.params)) as tokens:
                for token_id in tokens:
                    answer.num_tokens += 1
                    yield from _collected(stream.push(token_id), answer)
                    if stream.stopped is not None:
                        break
            yield from _collected(stream.finish(), answer)
            room = self.context - len(ids)
            most = min(self.params.max_tokens or room, room)
            is_cut = answer.num_tokens >= most and stream.stopped is None
            answer.finish_reason = "length" if is_cut else "stop"
        finally:
            answer.stats = self.engine.core.stats - before


def _collected(deltas: list[Delta], answer: Answer) -> Iterator[Delta]:
    for delta in deltas:
        if delta.channel == "reasoning":
            answer.reasoning += delta.text
        else:
            answer.content += delta.text
        yield delta


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

"""The interactive chat: reads a message, shows the answer, obeys `/commands` until the user leaves.

Reading a line is a function given from outside (`chat_reader.py` makes the real one), so the whole
loop runs in tests without a terminal. Knows nothing of options or of loading.
"""

import contextlib
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import click

from hybrid_k2.cli.conversation import Answer, Conversation
from hybrid_k2.errors import ContextLengthError, HybridK2Error
from hybrid_k2.text import Delta

_FENCE = '"""'
HELP = f"""\
/help            this list
/reset           forget the conversation, keep the system prompt
/system [TEXT]   show or set the system prompt
/stats           tokens and speed of the last answer and of the conversation
/save FILE       write the conversation to a file
/load FILE       continue a conversation from a file
/exit            leave (also Ctrl-D, or Ctrl-C twice)
A line that ends with \\ goes on in the next; {_FENCE} begins and ends a text of several lines.
Ctrl-C while the answer arrives ends the answer."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
# What a terminal would act on: a model can write any character.
_UNPRINTABLE = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\ufffd")

Read = Callable[[str], str]  # (prompt) -> line; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C


class AnswerPrinter:
    """Shows deltas as they come: content on one stream, reasoning, dimmed, on the same or another.

    On a terminal control characters come out as U+FFFD; in a pipe the text stays as it is.
    """

    def __init__(self, content: TextIO, reasoning: TextIO, colour: bool) -> None:
        self._streams = {"content": content, "reasoning": reasoning}
        self._dim = colour and reasoning.isatty()
        self._last: Delta | None = None

    def show(self, delta: Delta) -> None:
        stream = self._streams[delta.channel]
        if self._last is not None and self._last.channel != delta.channel:
            self._write("\n\n", self._streams["reasoning"])
        text = delta.text.translate(_UNPRINTABLE) if stream.isatty() else delta.text
        if self._dim and delta.channel == "reasoning":
            text = click.style(text, dim=True)
        self._write(text, stream)
        self._last = delta

    def end(self) -> None:
        """Ends the line, where there is one."""
        if self._last is not None:
            self._write("\n", self._streams[self._last.channel])
        self._last = None

    @staticmethod
    def _write(text: str, stream: TextIO) -> None:
        # Not click.echo: in a pipe it would take escape sequences out of the answer.
        stream.write(text)
        stream.flush()


class ChatTerminal:
    """The loop around one conversation."""

    def __init__(self, session: Conversation, read: Read, printer: AnswerPrinter) -> None:
        self._session = session
        self._read = read
        self._printer = printer
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: _say(HELP),
            "reset": self._reset,
            "system": self._system,
            "stats": self._stats,
            "save": self._save,
            "load": self._load,
            "exit": self._exit,
        }

    def run(self) -> None:
        """Returns when the user leaves; an error of one turn is shown and the chat goes on."""
        was_interrupted = False
        while True:
            try:
                text = read_message(self._read)
            except EOFError:
                return
            except KeyboardInterrupt:
                if was_interrupted:
                    return
                was_interrupted = True
                _say("(Ctrl-C again, Ctrl-D or /exit leaves)")
                continue
            was_interrupted = False
            try:
                self._obey(text)
            except EOFError:
                return
            except HybridK2Error as error:
                _say(f"error: {error}")

    def _obey(self, text: str) -> None:
        if not text.strip():
            return
        match = _COMMAND.fullmatch(text.strip())
        if match is None:
            self._answer(text)
        elif match[1] in self._commands:
            self._commands[match[1]]((match[2] or "").strip())
        else:
            near = difflib.get_close_matches(match[1], self._commands, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            _say(f"no command /{match[1]}; {hint}")

    def _answer(self, text: str) -> None:
        try:
            with contextlib.closing(self._session.ask(text)) as deltas:
                for delta in deltas:
                    self._printer.show(delta)
        except KeyboardInterrupt:
            self._printer.end()
            _say("(interrupted)")
        except ContextLengthError as error:
            _say(f"error: {error} Shorten the message, /reset, or start with a larger --context.")
            return
        finally:
            self._printer.end()
        _say(describe(self._session.answer, self._session.context))

    def _reset(self, _: str) -> None:
        self._session.reset()
        _say("(the conversation is forgotten)")

    def _system(self, text: str) -> None:
        if text:
            self._session.system = text
            _say("(system prompt set)")
        else:
            system = self._session.system
            default = self._session.default_system
            _say(f"system prompt: {default if system is None else system}")

    def _stats(self, _: str) -> None:
        if self._session.answer is not None:
            _say(f"last answer: {describe(self._session.answer, self._session.context)}")
        total = self._session.total
        _say(
            f"since the start: {total.prefill_tokens:,} prompt tokens computed at "
            f"{total.prefill_tokens_per_s:.1f} tok/s, {total.cached_tokens:,} reused, "
            f"{total.decode_tokens:,} decoded at {total.decode_tokens_per_s:.1f} tok/s"
        )

    def _save(self, name: str) -> None:
        path = _path(name, "/save")
        self._session.save(path)
        _say(f"(saved {len(self._session.messages)} messages to {path})")

    def _load(self, name: str) -> None:
        path = _path(name, "/load")
        self._session.load(path)
        _say(f"(loaded {len(self._session.messages)} messages from {path})")

    def _exit(self, _: str) -> None:
        raise EOFError


def read_message(read: Read) -> str:
    """Reads one message: a line, lines joined by a trailing backslash, or lines between fences."""
    line = read(">>> ")
    lines = [line]
    if line.lstrip().startswith(_FENCE):
        lines = [line.lstrip().removeprefix(_FENCE)]
        while not lines[-1].rstrip().endswith(_FENCE):
            lines.append(read("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_FENCE)
        return "\n".join(lines).strip("\n")
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read("... "))
    return "\n".join(lines)


def describe(answer: Answer | None, context: int | None) -> str:
    """One line of counts and speeds: computed, reused, decoded, and how full the context is."""
    if answer is None or answer.stats is None:
        return "(no answer)"
    stats = answer.stats
    used = answer.prompt_tokens + answer.num_tokens
    end = {"stop": "", "length": ", cut at the limit", "interrupted": ", interrupted"}
    return (
        f"[prefill {stats.prefill_tokens:,} tokens at {stats.prefill_tokens_per_s:.1f} tok/s, "
        f"{stats.cached_tokens:,} reused; decode {answer.num_tokens:,} at "
        f"{stats.decode_tokens_per_s:.1f} tok/s{end[answer.finish_reason]}; "
        f"context {used:,}{'' if context is None else f' of {context:,}'}]"
    )


def _say(text: str) -> None:
    click.echo(text, err=True)


def _path(name: str, command: str) -> Path:
    if not name:
        raise HybridK2Error(f"{command} needs a file name: {command} chat.json")
    return Path(name).expanduser()

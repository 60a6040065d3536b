"""The interactive chat, its lines given by the test, its engine a fake; and the source of lines."""

import io
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from chat_factory import FakeEngine

from hybrid_k2.cli.chat_reader import open_reader
from hybrid_k2.cli.chat_session import ChatSession
from hybrid_k2.cli.chat_terminal import HELP, AnswerPrinter, ChatTerminal, read_message
from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.errors import HybridK2Error
from hybrid_k2.text import Delta

Line = str | type[BaseException]


class Script:
    """Gives its lines in turn, raising those that are exceptions; then Ctrl-D."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = [*lines, EOFError]
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self._lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    @property
    def left(self) -> list[Line]:
        return self._lines[:-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Returns a function that runs a chat over the given lines."""

    def run_lines(engine: FakeEngine, *lines: Line, system: str | None = None):
        session = ChatSession(engine, engine.template, SamplingParams(), system=system)
        script = Script(lines)
        printer = AnswerPrinter(sys.stdout, sys.stdout, colour=False)
        ChatTerminal(session, script, printer).run()
        shown = capsys.readouterr()
        return shown.out, shown.err, session, script

    return run_lines


def test_answers_come_out_line_by_line_until_ctrl_d(run) -> None:
    out, err, session, _ = run(FakeEngine(["hello", "world"]), "one", "", "  ", "two")
    assert out == "hello\nworld\n"
    assert len(session.messages) == 4
    assert err.count("[prefill ") == 2


def test_the_figures_behind_an_answer_are_the_engines(run) -> None:
    _, err, session, _ = run(FakeEngine(["xyz"]), "one")
    num_tokens = session.answer.prompt_tokens
    assert f"[prefill {num_tokens} tokens at {num_tokens / 0.5:.1f} tok/s, 0 reused; " in err
    assert f"decode 3 at 10.0 tok/s; context {num_tokens + 3} of 512]" in err


@pytest.mark.parametrize("leave", [["/exit"], [KeyboardInterrupt, KeyboardInterrupt], [EOFError]])
def test_there_are_three_ways_to_leave(run, leave: list[Line]) -> None:
    _, _, _, script = run(FakeEngine(), *leave, "never read")
    assert script.left == ["never read"]


def test_one_ctrl_c_at_the_prompt_only_says_how_to_leave(run) -> None:
    out, err, _, script = run(
        FakeEngine(["hello"]), KeyboardInterrupt, "one", KeyboardInterrupt, "/stats"
    )
    assert out == "hello\n"
    assert err.count("Ctrl-C again") == 2
    assert script.left == []


def test_ctrl_c_stops_the_answer_and_not_the_program(run) -> None:
    engine = FakeEngine([["he", KeyboardInterrupt()], [KeyboardInterrupt()], "world"])
    out, err, session, _ = run(engine, "one", "two", "three")
    assert out == "he\nworld\n"
    assert err.count("(interrupted)") == 2
    assert [m["content"] for m in session.messages] == ["one", "he", "three", "world"]


def test_an_error_ends_the_turn_and_not_the_program(run) -> None:
    engine = FakeEngine([["he", HybridK2Error("NaN in blk.0")], "world"])
    out, err, session, _ = run(engine, "one", "two")
    assert out == "he\nworld\n"
    assert "error: NaN in blk.0\n" in err
    assert len(session.messages) == 2


def test_a_conversation_that_outgrew_the_context_points_to_reset(run) -> None:
    engine = FakeEngine(["hello", "hello"], context=100)
    out, err, _, _ = run(engine, "one", "word " * 200, "/reset", "two")
    assert out == "hello\nhello\n"
    assert err.count("error: ") == 1
    assert "/reset" in err


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""one', "", "two", 'three"""'], "one\n\ntwo\nthree"),
        (['"""', "one", '"""'], "one"),
        (['"""one"""'], "one"),
        (['"""', '  indented "quoted"', "/help", '"""  '], '  indented "quoted"\n/help'),
        ([r"C:\path"], r"C:\path"),
    ],
)
def test_a_message_may_have_several_lines(lines: list[str], expected: str) -> None:
    script = Script(lines)
    assert read_message(script) == expected
    assert script.left == []
    assert script.prompts == [">>> "] + ["... "] * (len(lines) - 1)


def test_ctrl_c_inside_a_message_of_several_lines_drops_it(run) -> None:
    engine = FakeEngine(["hello"])
    run(engine, "lost\\", KeyboardInterrupt, "kept")
    assert "lost" not in engine.prompts[0]


# Commands --------------------------------------------------------------------------------------


def test_help_lists_every_command(run) -> None:
    _, err, _, _ = run(FakeEngine(), "/help")
    assert err == HELP + "\n"
    for name in ("help", "reset", "system", "stats", "save", "load", "exit"):
        assert f"/{name} " in HELP


def test_reset_forgets_the_conversation(run) -> None:
    engine = FakeEngine(["hello", "world"])
    run(engine, "one", "/reset", "two")
    assert "hello" not in engine.prompts[1]


def test_system_shows_and_sets_the_system_prompt(run) -> None:
    engine = FakeEngine(["hello"])
    _, err, session, _ = run(engine, "/system", "/system  be\nbrief ", "/system", "one")
    assert "system prompt: You are Kimi" in err
    assert "system prompt: be\nbrief\n" in err
    assert session.system == "be\nbrief"
    assert "<|im_middle|>be\nbrief<|im_end|>" in engine.prompts[0]


def test_stats_add_up_over_the_conversation(run) -> None:
    engine = FakeEngine(["xyz", "xyz"])
    _, err, _, _ = run(engine, "/stats", "one", "two", "/stats")
    assert "since the start: 0 prompt tokens" in err
    assert "last answer: [prefill" in err
    assert f"since the start: {engine.core.stats.prefill_tokens} prompt tokens" in err
    assert "6 decoded at 10.0 tok/s" in err


def test_save_and_load_carry_a_conversation_over(run, tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    _, err, first, _ = run(FakeEngine(["hello"]), "one", f"/save {file}")
    assert f"(saved 2 messages to {file})" in err
    engine = FakeEngine(["world"])
    _, err, second, _ = run(engine, f"/load {file}", "two")
    assert f"(loaded 2 messages from {file})" in err
    assert second.messages[:2] == first.messages
    assert "hello<|im_end|>" in engine.prompts[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/save", "error: /save needs a file name"),
        ("/load", "error: /load needs a file name"),
        ("/load nowhere.json", "error: nowhere.json: cannot be read: No such file"),
        ("/save no/where.json", "error: no/where.json: not saved: No such file"),
        ("/rest", "no command /rest; did you mean /reset?"),
        ("/xyzzy", "no command /xyzzy; /help lists them"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(run, line: str, expected: str) -> None:
    engine = FakeEngine(["hello"])
    out, err, _, _ = run(engine, line, "one")
    assert expected in err
    assert out == "hello\n"
    assert len(engine.prompts) == 1


@pytest.mark.parametrize("text", ["/etc/passwd is what?", "/ and //", "a /help"])
def test_text_with_a_slash_is_not_a_command(run, text: str) -> None:
    engine = FakeEngine(["hello"])
    run(engine, text)
    assert text in engine.prompts[0]


# What is shown ---------------------------------------------------------------------------------


def test_a_terminal_never_gets_control_characters_from_the_model() -> None:
    hostile = "a\x1b[31mb\x07\x9b2J\r\tc\n\x7f"
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        printer = AnswerPrinter(stream, stream, colour=True)
        printer.show(Delta("content", hostile))
    assert terminal.getvalue() == "a\ufffd[31mb\ufffd\ufffd2J\ufffd\tc\n\ufffd"
    assert pipe.getvalue() == hostile


@pytest.mark.parametrize(
    ("stream", "colour", "expected"),
    [
        (Terminal(), True, "\x1b[2mwhy\x1b[0m\n\nyes\n"),
        (Terminal(), False, "why\n\nyes\n"),
        (io.StringIO(), True, "why\n\nyes\n"),
    ],
)
def test_reasoning_is_set_apart_and_dimmed_where_there_is_colour(
    stream: io.StringIO, colour: bool, expected: str
) -> None:
    printer = AnswerPrinter(stream, stream, colour)
    for delta in (Delta("reasoning", "why"), Delta("content", "yes")):
        printer.show(delta)
    printer.end()
    printer.end()
    assert stream.getvalue() == expected


def test_reasoning_may_go_elsewhere() -> None:
    content, reasoning = io.StringIO(), io.StringIO()
    printer = AnswerPrinter(content, reasoning, colour=False)
    for delta in (Delta("reasoning", "why"), Delta("content", "yes")):
        printer.show(delta)
    printer.end()
    assert (content.getvalue(), reasoning.getvalue()) == ("yes\n", "why\n\n")


# Where lines come from -------------------------------------------------------------------------


def read_all(history: Path | None, typed: str) -> list[str]:
    """What prompt_toolkit's reader returns for keys typed, line by line, until Ctrl-D."""
    application = pytest.importorskip("prompt_toolkit.application")
    pipe = pytest.importorskip("prompt_toolkit.input").create_pipe_input
    output = pytest.importorskip("prompt_toolkit.output").DummyOutput
    lines = []
    with pipe() as keys, application.create_app_session(input=keys, output=output()):
        keys.send_text(typed + "\x04")
        with open_reader(history) as read:
            try:
                while True:
                    lines.append(read(">>> "))
            except EOFError:
                return lines


def test_typed_lines_are_kept_for_the_next_chat_and_for_their_owner_only(tmp_path: Path) -> None:
    history = tmp_path / "state" / "chat_history"
    assert read_all(history, "one\rtwo\r") == ["one", "two"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert read_all(history, "three\r") == ["three"]
    assert [word in history.read_text() for word in ("one", "two", "three")] == [True] * 3


def test_a_history_that_others_could_read_is_taken_from_them(tmp_path: Path) -> None:
    history = tmp_path / "chat_history"
    history.touch(mode=0o644)
    read_all(history, "one\r")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_without_a_history_nothing_is_written(tmp_path: Path) -> None:
    assert read_all(None, "one\r") == ["one"]
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_written_is_reported_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert read_all(tmp_path / "file" / "chat_history", "one\r") == ["one"]
    assert "no chat history" in caplog.text


def test_without_prompt_toolkit_readline_keeps_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr("builtins.input", lambda prompt: readline.add_history("typed") or "typed")
    history = tmp_path / "chat_history"
    readline.clear_history()
    with open_reader(history) as read:
        assert read(">>> ") == "typed"
    assert "typed" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    readline.clear_history()
    with open_reader(history):
        assert readline.get_current_history_length() >= 1
    readline.clear_history()

"""`hybrid-k2 chat`: options, one answer through a pipe, and what is refused before loading."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_factory import FakeEngine
from click.testing import CliRunner, Result

import hybrid_k2
from hybrid_k2.cli import chat, main
from hybrid_k2.cli.loading_bar import LoadingBar
from hybrid_k2.errors import BadInputError, ContextLengthError, NonFiniteError


class Opener:
    """Stands for the class Engine: gives out one fake engine and remembers how it was opened."""

    def __init__(self) -> None:
        self.engine = FakeEngine(["hello world"])
        self.opened: list[tuple[Any, ...]] = []
        self.runtime: dict[str, Any] = {}

    def open(self, model: Any, rules: Any, model_path: Any, progress: Any, **runtime: Any) -> Any:
        self.opened.append((model, rules, model_path))
        self.runtime = runtime
        progress("loading", 1, 2)
        progress("loading", 2, 2)
        return self.engine


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    # Not setattr, which would import the real Engine to remember it.
    fake = Opener()
    monkeypatch.setitem(vars(hybrid_k2), "Engine", fake)
    yield fake
    assert all(fake.engine.is_closed for _ in fake.opened)


def run(*options: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main.cli, ["chat", *options], input=stdin)


@pytest.mark.parametrize("how", ["prompt", "stdin", "dash", "file"])
def test_stdout_is_the_answer_and_nothing_else(opener: Opener, tmp_path: Path, how: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hi there\n")
    options = {
        "prompt": ["--prompt", "hi there"],
        "stdin": [],
        "dash": ["-p", "-"],
        "file": ["--prompt-file", str(file)],
    }
    result = run(*options[how], stdin="hi there\n")
    assert (result.exit_code, result.stdout) == (0, "hello world\n")
    assert "tok/s" in result.stderr
    assert "<|im_user|>user<|im_middle|>hi there<|im_end|>" in opener.engine.prompts[0]


def test_a_notice_of_the_engines_goes_to_stderr(opener: Opener) -> None:
    opener.engine.notice = "This is a demo model."
    result = run("-p", "hi")
    assert result.stdout == "hello world\n"
    assert "This is a demo model." in result.stderr


def test_json_is_one_object_with_text_counts_and_times(opener: Opener) -> None:
    result = run("-p", "hi", "--json")
    document = json.loads(result.stdout)
    stats = opener.engine.core.stats
    assert document.pop("load_s") >= 0
    assert document == {
        "model": "fake K2",
        "text": "hello world",
        "reasoning": "",
        "finish_reason": "stop",
        "prompt_tokens": stats.prefill_tokens,
        "cached_tokens": 0,
        "answer_tokens": stats.decode_tokens,
        "prefill_s": 0.5,
        "decode_s": round(stats.decode_tokens * 0.1, 6),
        "prefill_tokens_per_s": round(stats.prefill_tokens / 0.5, 3),
        "decode_tokens_per_s": 10.0,
    }


def test_reasoning_is_no_part_of_stdout(opener: Opener) -> None:
    answer = [["<think>", "why", "</think>", "yes"]] * 2
    opener.engine = FakeEngine(answer, variant="thinking")
    result = run("-p", "hi")
    assert result.stdout == "yes\n"
    assert "why" in result.stderr
    document = json.loads(run("-p", "hi", "--json").stdout)
    assert (document["text"], document["reasoning"]) == ("yes", "why")


# Options ---------------------------------------------------------------------------------------


def test_sampling_options_reach_the_engine(opener: Opener) -> None:
    options = "--temperature 0.3 --top-p 0.9 --top-k 40 --min-p 0.01 --seed 7 --max-tokens 99"
    run("-p", "hi", *options.split())
    params = opener.engine.params[0]
    assert (params.temperature, params.top_p, params.top_k) == (0.3, 0.9, 40)
    assert (params.min_p, params.seed, params.max_tokens) == (0.01, 7, 99)


@pytest.mark.parametrize(("variant", "temperature"), [("instruct", 0.6), ("thinking", 1.0)])
def test_the_temperature_is_the_variants_unless_given(
    opener: Opener, variant: str, temperature: float
) -> None:
    opener.engine = FakeEngine(["a", "b"], variant)
    run("-p", "hi")
    run("-p", "hi", "--temperature", "0")
    assert [params.temperature for params in opener.engine.params] == [temperature, 0]


def test_stop_strings_and_the_system_prompt_are_obeyed(opener: Opener) -> None:
    result = run("-p", "hi", "--stop", "xyz", "--stop", "wor", "--system", "be brief")
    assert result.stdout == "hello \n"
    assert "be brief<|im_end|>" in opener.engine.prompts[0]


def test_the_template_may_be_chosen(opener: Opener) -> None:
    opener.engine = FakeEngine(["</think>", "yes"], variant="thinking")
    result = run("-p", "hi", "--template", "k2.5")
    assert opener.engine.prompts[0].endswith("<|im_middle|><think>")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "opened"),
    [
        ([], (None, "auto", None)),
        (["K2.gguf"], (Path("K2.gguf"), "auto", None)),
        (["--gguf-path", "dir"], (Path("dir"), "auto", None)),
        (
            ["--model-path", "hf", "--gguf-path", "dir", "--rules", "cpu"],
            (Path("dir"), "cpu", Path("hf")),
        ),
        (["K2.gguf", "--model-path", "hf"], (Path("K2.gguf"), "auto", Path("hf"))),
    ],
)
def test_the_model_may_be_named_in_two_ways(
    opener: Opener, options: list[str], opened: tuple[Any, ...]
) -> None:
    run("-p", "hi", *options)
    assert opener.opened == [opened]


def test_context_and_threads_reach_the_engine(opener: Opener) -> None:
    run("-p", "hi", "--context", "1000", "--threads", "3")
    assert opener.runtime.items() >= {"context": 1000, "num_threads": 3}.items()


def test_a_prompt_longer_than_the_context_is_refused_before_loading(opener: Opener) -> None:
    run("-p", "hello " * 100)
    check = opener.runtime["before_loading"]
    check(opener.engine.template, 4096)
    with pytest.raises(ContextLengthError, match="50"):
        check(opener.engine.template, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["K2.gguf", "--gguf-path", "dir"], "not both"),
        (["--model-path", "hf"], "give the weights as MODEL or with --gguf-path"),
        (["--prompt-file", "x"], "not both"),
        (["--stop", ""], "--stop is empty"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--context", "-1"], "context is -1"),
        (["--threads", "-1"], "num_threads is -1"),
        (["--template", "k9"], "k9"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(
    opener: Opener, options: list[str], message: str
) -> None:
    result = run("-p", "hi", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (result.stdout, opener.opened) == ("", [])


# Prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_prompt_of_200_mb_is_refused_at_once_by_its_size(
    opener: Opener, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "prompt.txt"
    with file.open("wb") as stream:
        stream.truncate(200_000_000)
    began = time.process_time()
    if how == "file":
        result = run("--prompt-file", str(file))
    else:
        with file.open("rb") as stream:
            result = CliRunner().invoke(main.cli, ["chat"], input=stream)
    assert time.process_time() - began < 1
    assert result.exit_code == 2
    assert "more than 1,048,576 bytes" in result.stderr
    assert "4,096 tokens" in result.stderr
    assert opener.opened == []


def test_an_endless_prompt_is_read_no_further_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 1001
            return b"a" * size

    with pytest.raises(BadInputError, match="more than 1,000 bytes"):
        chat._read_at_most(Endless(), 1000, "stdin")


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "stdin: the prompt is empty"),
        (b" \n\n", "stdin: the prompt is empty"),
        (b"caf\xe9", "stdin: byte 0xe9 at 3 is not UTF-8"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(opener: Opener, stdin: bytes, message: str) -> None:
    result = run(stdin=stdin)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert opener.opened == []


def test_a_prompt_file_that_cannot_be_read_is_named(opener: Opener, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory")):
        result = run("--prompt-file", str(path))
        assert (result.exit_code, opener.opened) == (2, [])
        assert f"error: {path}: cannot be read: {reason}" in result.stderr


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(opener: Opener) -> None:
    result = run("-p", "word " * 300)
    assert result.exit_code == 2
    assert "maximum context length is 512 tokens" in result.stderr
    assert "--context" in result.stderr
    assert (result.stdout, opener.engine.prompts) == ("", [])


def test_an_error_of_the_engines_ends_the_command_with_its_code(opener: Opener) -> None:
    opener.engine = FakeEngine([["he", NonFiniteError("blk.0 holds NaN")]])
    result = run("-p", "hi")
    assert result.exit_code == NonFiniteError.exit_code
    assert result.stderr.endswith("error: blk.0 holds NaN\n")


def test_json_needs_a_prompt(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_is_terminal", lambda: True)
    result = run("--json")
    assert (result.exit_code, opener.opened) == (2, [])
    assert "--json needs --prompt" in result.stderr


def test_the_demo_model_greets_and_says_that_it_is_one() -> None:
    result = run("-p", "hello", "--seed", "1")
    assert result.exit_code == 0
    assert result.stdout.startswith(("Hello", "Hi"))
    assert "demo model" in result.stderr


def test_the_demo_model_thinks_where_the_template_is_chosen() -> None:
    result = run("-p", "What is 17 + 25?", "--template", "thinking", "--temperature", "0", "--json")
    document = json.loads(result.stdout)
    assert "42" in document["text"] and "think" not in document["text"]
    assert len(document["reasoning"]) > 20


# Interactive -----------------------------------------------------------------------------------


def test_without_a_prompt_a_terminal_gets_a_chat(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    histories = []
    lines = iter(["hi"])

    def reader(history: Path | None) -> Any:
        histories.append(history)
        return _Opened(lambda prompt: next(lines, None) or _end())

    monkeypatch.setattr(chat, "_is_terminal", lambda: True)
    monkeypatch.setattr(chat, "open_reader", reader)
    result = run()
    assert (result.exit_code, result.stdout) == (0, "hello world\n")
    assert "fake K2: context 512 tokens; /help lists the commands" in result.stderr
    assert run("--no-history").exit_code == 0
    state = Path(os.environ["XDG_STATE_HOME"])
    assert histories == [state / "hybrid-k2" / "chat_history", None]


class _Opened:
    """A context manager that gives what it was made with."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *_: object) -> None:
        pass


def _end() -> str:
    raise EOFError


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_shows_loading_on_a_terminal_only(is_terminal: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    with LoadingBar(stream) as progress:
        for phase, total in (("reading", 10), ("packing", 0)):
            for done in range(total + 1):
                progress(phase, done, total)
    shown = stream.getvalue()
    assert [word in shown for word in ("reading", "packing", "100%")] == [is_terminal] * 3

"""The command group: finding commands, help, versions, and how errors end. Commands' own tests are
beside it.
"""

import logging
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import hybrid_k2
from hybrid_k2 import errors
from hybrid_k2.cli import main

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.HybridK2Error)
]


@pytest.fixture
def run_failing(monkeypatch):
    """Returns a function that runs a command which raises the given exception."""

    def run(exception: BaseException, *options: str):
        @click.command()
        def fail() -> None:
            raise exception

        monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, ctx, name: fail)
        return CliRunner().invoke(main.cli, [*options, "chat"])

    return run


@pytest.fixture(autouse=True)
def _logging_restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_a_known_error_is_one_line_on_stderr_with_its_exit_code(error, run_failing) -> None:
    message = "K2.gguf: is no GGUF; give one"
    # __new__ alone: some classes make their message of figures of their own.
    result = run_failing(error.__new__(error, message))
    assert result.exit_code == error.exit_code in (1, 2)
    assert result.stderr == f"error: {message}\n"
    assert result.stdout == ""


def test_an_error_that_nobody_planned_keeps_its_traceback(run_failing) -> None:
    result = run_failing(ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_ends_with_the_status_that_shells_expect(run_failing) -> None:
    assert run_failing(KeyboardInterrupt()).exit_code == 130


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("chatt", "did you mean 'chat'?"), ("zzz", "commands: chat, serve")],
)
def test_an_unknown_command_names_what_was_meant(typed: str, answer: str) -> None:
    result = CliRunner().invoke(main.cli, [typed])
    assert result.exit_code == 2
    assert f"no command '{typed}'" in result.stderr and answer in result.stderr


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(main.cli, ["--version"])
    assert result.output == f"hybrid-k2, version {hybrid_k2.__version__}\n"


def test_the_group_lists_every_command_with_a_summary() -> None:
    output = CliRunner().invoke(main.cli, ["-h"]).output
    for name in main.COMMANDS:
        assert re.search(rf"^  {name}  +\w", output, re.M), name


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_commands_help_has_an_example_and_explains_every_option(name: str) -> None:
    result = CliRunner().invoke(main.cli, [name, "--help"])
    assert result.exit_code == 0
    assert f"hybrid-k2 {name}" in result.output.split("Usage:", 1)[1].split("\n", 1)[1]
    command = main.cli.get_command(click.Context(main.cli), name)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help text"


def test_the_readme_lists_exactly_the_commands_there_are(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `hybrid-k2 (\w+)", section, re.M)
    assert list(dict.fromkeys(rows)) == list(main.COMMANDS)  # bench has a row for each of its own


def test_python_m_runs_the_same_command() -> None:
    command = [sys.executable, "-m", "hybrid_k2", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert hybrid_k2.__version__ in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m hybrid_k2 --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage:") and done.stderr == ""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_costs_no_heavy_import(option: str) -> None:
    heavy = "torch numba fastapi uvicorn prompt_toolkit transformers"
    code = (
        "import sys; from hybrid_k2.cli.main import cli\n"
        f"cli.main(['{option}'], standalone_mode=False)\n"
        f"print('loaded:', *set('{heavy}'.split()) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"

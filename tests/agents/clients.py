"""Four agents from npm: how each is told of the server and given a task, and the tools it has.

    npm install @anthropic-ai/claude-code @openai/codex @qwen-code/qwen-code opencode-ai

Each works on a file `notes.txt` that holds one word, reads it and replaces the word. Knows nothing
of servers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.scripted_agent import Task

FIRST = "In notes.txt replace the word apple by pear."
SECOND = "Now replace the word pear by plum."

Calls = Callable[[Path, str, str], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Client:
    """One agent. All paths and the server's address are in `Place`.

    command, again: the command line of the first task and of a later one of the same conversation;
    the task itself is appended.
    settings: files to write into the home directory, as text by name.
    """

    name: str
    program: str
    calls: Calls
    command: tuple[str, ...]
    again: tuple[str, ...]
    environment: Callable[[str], Mapping[str, str]]
    settings: Callable[[str], Mapping[str, str]] = lambda url: {}

    def tasks(self, file: Path) -> list[Task]:
        """The two tasks as this agent's tools do them."""
        words = [(FIRST, "apple", "pear"), (SECOND, "pear", "plum")]
        return [Task(request, self.calls(file, old, new)) for request, old, new in words]


def _claude_calls(file: Path, old: str, new: str) -> tuple[tuple[str, str], ...]:
    edit = {"file_path": str(file), "old_string": old, "new_string": new}
    return ("Read", _json(file_path=str(file))), ("Edit", _json(**edit))


def _codex_calls(file: Path, old: str, new: str) -> tuple[tuple[str, str], ...]:
    commands = (f"cat {file}", f"sed -i s/{old}/{new}/ {file}")
    return tuple(("exec_command", _json(cmd=command)) for command in commands)


def _qwen_calls(file: Path, old: str, new: str) -> tuple[tuple[str, str], ...]:
    edit = {"file_path": str(file), "old_string": old, "new_string": new}
    return ("read_file", _json(file_path=str(file))), ("edit", _json(**edit))


def _opencode_calls(file: Path, old: str, new: str) -> tuple[tuple[str, str], ...]:
    edit = {"filePath": str(file), "oldString": old, "newString": new}
    return ("read", _json(filePath=str(file))), ("edit", _json(**edit))


def _codex_settings(url: str) -> dict[str, str]:
    lines = [
        'model = "k2"',
        'model_provider = "k2"',
        "[model_providers.k2]",
        'name = "k2"',
        f'base_url = "{url}/v1"',
        'wire_api = "responses"',
    ]
    return {".codex/config.toml": "\n".join(lines)}


def _opencode_settings(url: str) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "x"},
        "models": {"k2": {"name": "k2"}},
    }
    config = {"provider": {"k2": provider}, "permission": "allow", "autoupdate": False}
    return {".config/opencode/opencode.json": json.dumps(config)}


def _json(**arguments: str) -> str:
    return json.dumps(arguments)


CLIENTS = (
    Client(
        "Claude Code",
        "claude",
        _claude_calls,
        command=("-p", "--model", "k2", "--permission-mode", "acceptEdits"),
        again=("-p", "--model", "k2", "--permission-mode", "acceptEdits", "--continue"),
        environment=lambda url: {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "x",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "k2",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    ),
    Client(
        "Codex CLI",
        "codex",
        _codex_calls,
        command=("exec", "--skip-git-repo-check", "-s", "danger-full-access"),
        again=("exec", "--skip-git-repo-check", "-s", "danger-full-access", "resume", "--last"),
        environment=lambda url: {},
        settings=_codex_settings,
    ),
    Client(
        "Qwen Code",
        "qwen",
        _qwen_calls,
        command=("--auth-type", "openai", "--yolo", "-p"),
        again=("--auth-type", "openai", "--yolo", "--continue", "-p"),
        environment=lambda url: {
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "x",
            "OPENAI_MODEL": "k2",
        },
    ),
    Client(
        "opencode",
        "opencode",
        _opencode_calls,
        command=("run", "--model", "k2/k2"),
        again=("run", "--model", "k2/k2", "--continue"),
        environment=lambda url: {},
        settings=_opencode_settings,
    ),
)

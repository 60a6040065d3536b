"""Four agents from npm: how each is told of the server and given a task, and the tools it has.

    npm install @anthropic-ai/claude-code @openai/codex @qwen-code/qwen-code opencode-ai

Each works on a file `notes.txt` that holds one word, reads it and replaces the word. Knows nothing
of servers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.scripted_agent import Task

from hybrid_k2.cli.launch import AGENTS, Setup

MODEL = "k2"
FIRST = "In notes.txt replace the word apple by pear."
SECOND = "Now replace the word pear by plum."

Calls = Callable[[Path, str, str], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Client:
    """One agent.

    command, again: what follows the arguments of `hybrid-k2 launch` for the first task and for a
    later one of the same conversation; the task itself is appended.
    settings: files to write into the home directory, as text by name.
    """

    name: str
    program: str
    calls: Calls
    command: tuple[str, ...]
    again: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def setup(self, url: str) -> Setup:
        """What `hybrid-k2 launch` tells the agent."""
        return AGENTS[self.program].setup(url, MODEL, "x")

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


def _json(**arguments: str) -> str:
    return json.dumps(arguments)


CLIENTS = (
    Client(
        "Claude Code",
        "claude",
        _claude_calls,
        command=("-p", "--permission-mode", "acceptEdits"),
        again=("-p", "--permission-mode", "acceptEdits", "--continue"),
    ),
    Client(
        "Codex CLI",
        "codex",
        _codex_calls,
        command=("exec", "--skip-git-repo-check", "-s", "danger-full-access"),
        again=("exec", "--skip-git-repo-check", "-s", "danger-full-access", "resume", "--last"),
    ),
    Client(
        "Qwen Code",
        "qwen",
        _qwen_calls,
        command=("--yolo", "-p"),
        again=("--yolo", "--continue", "-p"),
    ),
    Client(
        "opencode",
        "opencode",
        _opencode_calls,
        command=("run",),
        again=("run", "--continue"),
        settings={".config/opencode/opencode.json": '{"permission": "allow"}'},
    ),
)

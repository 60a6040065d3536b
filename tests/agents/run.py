r"""Do coding agents from npm work with this server, set up as `hybrid-k2 launch` does it?

    npm install --prefix DIR @anthropic-ai/claude-code @openai/codex \
        @qwen-code/qwen-code opencode-ai    # and let their install scripts run
    python tests/agents/run.py --bin DIR/node_modules/.bin

Each gets two tasks of one conversation. A real server on loopback, behind it the real engine over a
model that plays its part. An agent passes if its file was changed both times, and if the second
task's first request found at least 95% of its prompt in the prefix cache. Needs no network but
loopback. Exit code 1 where one fails.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.clients import CLIENTS, FIRST, MODEL, SECOND, Client
from agents.scripted_agent import AgentEngine
from server.running_server import RunningServer

from hybrid_k2 import demo_model
from hybrid_k2.checkpoint import open_checkpoint
from hybrid_k2.server.settings import ServerSettings
from hybrid_k2.text import Tokenizer

LEAST_HIT_RATE = 0.95
LEAST_AGENT_TOKENS = 1000  # of a prompt with tools; titles and probes are shorter
TIMEOUT_S = 180


class Requests(logging.Handler):
    """Collects what the server logs of its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Mapping[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "request"):
            self.parts.append(record.request)

    def of_the_agent(self) -> list[Mapping[str, Any]]:
        """Those whose prompt was long."""
        return [p for p in self.parts if p.get("prompt_tokens", 0) >= LEAST_AGENT_TOKENS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, help="folder of the agents' programs [PATH]")
    parser.add_argument("--tokenizer", type=Path, help="folder with K2's tokenizer [the demo's]")
    parser.add_argument("--only", action="append", help="an agent's program; repeatable [all]")
    parser.add_argument("--verbose", action="store_true", help="show all requests and output")
    options = parser.parse_args()
    tokenizer = _tokenizer(options.tokenizer)
    print("agent        task 1 task 2 requests  prompt 2nd turn hits")
    failed = 0
    for client in CLIENTS:
        if options.only and client.program not in options.only:
            continue
        program = shutil.which(client.program, path=options.bin)
        if program is None:
            print(f"{client.name:12} not installed")
            continue
        failed += not _passes(client, program, tokenizer, options.verbose)
    return 1 if failed else 0


def _passes(client: Client, program: str, tokenizer: Tokenizer, verbose: bool) -> bool:
    with tempfile.TemporaryDirectory() as folder, _requests() as requests:
        home, work = Path(folder) / "home", Path(folder) / "work"
        home.mkdir()
        work.mkdir()
        file = work / "notes.txt"
        file.write_text("apple\n")
        engine = AgentEngine(tokenizer, client.tasks(file))
        server = RunningServer(engine, ServerSettings(model_name=MODEL))
        server.start()
        try:
            for name, text in client.settings.items():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(text)
            setup = client.setup(server.url)
            environment = {"HOME": str(home), "PATH": os.environ["PATH"], **setup.environment}
            done, turns = [], []
            for command, task, word in (
                (client.command, FIRST, "pear"),
                (client.again, SECOND, "plum"),
            ):
                before = len(requests.of_the_agent())
                output = _run([program, *setup.arguments, *command, task], work, environment)
                done.append(file.read_text().strip() == word)
                turns.append(requests.of_the_agent()[before:])
                if verbose or not done[-1]:
                    print(output)
        finally:
            server.stop()
        if verbose:
            print(*requests.parts, sep="\n")
    first = turns[1][0] if turns[1] else {"prompt_tokens": 0, "cached_tokens": 0}
    hits = first["cached_tokens"] / max(first["prompt_tokens"], 1)
    shown = ["done" if is_done else "FAILED" for is_done in done]
    print(
        f"{client.name:12} {shown[0]:>6} {shown[1]:>6} {len(turns[0]) + len(turns[1]):8} "
        f"{first['prompt_tokens']:7} {hits:13.1%}"
    )
    return all(done) and hits >= LEAST_HIT_RATE


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        return f"{command[0]} took more than {TIMEOUT_S} s\n{error.stdout!r}"
    return result.stdout


@contextmanager
def _requests() -> Iterator[Requests]:
    log = logging.getLogger("hybrid_k2.server.access_log")
    handler = Requests()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield handler
    finally:
        log.removeHandler(handler)


def _tokenizer(folder: Path | None) -> Tokenizer:
    if folder is not None:
        return Tokenizer.from_directory(folder)
    with closing(open_checkpoint(demo_model.path())) as checkpoint:
        keys = dict(checkpoint.metadata)
    # As K2-Instruct's, whose template the script answers: without markers to think in.
    tokens = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = [f"[{t[1:-1]}]" if "think>" in t else t for t in tokens]
    return Tokenizer.from_gguf(keys)


if __name__ == "__main__":
    sys.exit(main())

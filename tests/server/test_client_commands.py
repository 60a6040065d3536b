"""The commands that talk to a server, against the real one on loopback: chat --url, launch, bench
serve; and handover, whose commands are meant for elsewhere.
"""

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys

import pytest
from click.testing import CliRunner
from server.scripted_engine import CRASH, ScriptedEngine

from hybrid_k2.cli import endpoint_load
from hybrid_k2.cli.launch import AGENTS
from hybrid_k2.cli.main import cli
from hybrid_k2.cli.remote import RemoteServer
from hybrid_k2.errors import BadInputError, HybridK2Error


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, arguments, input=stdin)


@pytest.fixture
def nobody():
    """The address of a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_chat_asks_a_server_instead_of_a_model_of_its_own(serve, path):
    result = run("chat", "--url", serve(ScriptedEngine()).url + path, "-p", "hello")
    assert (result.exit_code, result.stdout) == (0, "You said: hello\n")
    assert re.search(r"\[prefill \d+ tokens .*decode \d+ .*of 1,000\]", result.stderr)


def test_chat_gives_the_servers_figures_as_json(serve):
    engine = ScriptedEngine({"why": ["<think>", "Hm.", "</think>", "So."]}, thinking=True)
    result = run("chat", "--url", serve(engine).url, "-p", "why", "--system", "Be.", "--json")
    document = json.loads(result.stdout)
    assert (document["model"], document["text"], document["reasoning"]) == ("k2", "So.", "Hm.")
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "why"}]
    assert document["prompt_tokens"] == len(engine.template.render(messages))
    assert document["finish_reason"] == "stop"
    assert document["prefill_tokens_per_s"] > 0


def test_chat_through_a_pipe_sends_the_sampling_options_it_was_given(serve):
    server = serve(ScriptedEngine())
    result = run("chat", "k2", "--url", server.url, "--max-tokens", "3", "--json", stdin="hello")
    document = json.loads(result.stdout)
    assert (document["finish_reason"], document["answer_tokens"]) == ("length", 3)


def test_chat_names_the_models_there_are_and_the_options_that_do_not_apply(serve):
    url = serve(ScriptedEngine()).url
    result = run("chat", "gpt", "--url", url, "-p", "hello")
    assert result.exit_code == 2 and "no model 'gpt'" in result.stderr and "k2" in result.stderr
    result = run("chat", "--url", url, "--rules", "cpu", "-p", "hello")
    assert result.exit_code == 2 and "--rules" in result.stderr


def test_chat_passes_a_servers_refusal_and_its_failure_on(serve, nobody):
    server = serve(ScriptedEngine(), api_keys=("secret",))
    result = run("chat", "--url", server.url, "-p", "hello")
    assert result.exit_code == 2 and "--api-key" in result.stderr
    result = run("chat", "--url", server.url, "--api-key", "secret", "-p", "hello")
    assert result.stdout == "You said: hello\n"
    result = run("chat", "--url", server.url, "--api-key", "secret", "-p", "long " * 500)
    assert result.exit_code == 2 and "maximum context length is 1000" in result.stderr
    result = run("chat", "--url", server.url, "--api-key", "secret", "-p", CRASH)
    assert result.exit_code == 1 and "internal error" in result.stderr
    result = run("chat", "--url", nobody, "-p", "hello")
    assert result.exit_code == 1 and "Connection refused" in result.stderr


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:99999", "h:port"])
def test_what_is_no_address_is_bad_input(url):
    with pytest.raises(BadInputError, match="is no address"):
        RemoteServer(url)


class Raw:
    """A server that says the same bytes to everybody."""

    def __init__(self, said: bytes):
        code = (
            "import socket, sys\n"
            "listener = socket.create_server(('127.0.0.1', 0))\n"
            "print(listener.getsockname()[1], flush=True)\n"
            "peer, _ = listener.accept()\n"
            "peer.recv(65536)\n"
            f"peer.sendall({said!r})\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "cannot reach"),
        (b"SSH-2.0-OpenSSH\r\n", "cannot reach"),
        (HEAD + b'data: {"choices":[]}\n\n', "broke the answer off"),
        (HEAD + b"data: {oops\n\n", "no JSON"),
        (HEAD + b"data: [1]\n\n", "in place of an object"),
        (HEAD + b'data: {"error":{"message":"out of memory"}}\n\n', "out of memory"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", "answers 502: <html>"),
        (b'HTTP/1.1 500 No\r\n\r\n{"error":"plain"}', "answers 500: plain"),
    ],
)
def test_whatever_a_server_says_is_one_line_of_error(said, complaint):
    peer = Raw(said)
    try:
        with pytest.raises(HybridK2Error, match=re.escape(complaint)):
            list(RemoteServer(peer.url).events("/v1/chat/completions", {}))
    finally:
        peer.process.wait(20)
        peer.process.stdout.close()


@pytest.mark.parametrize("agent", AGENTS)
def test_launch_prints_a_line_that_a_shell_reads_back(serve, agent):
    server = serve(ScriptedEngine(), model_name="my k2", api_keys=("se cret",))
    result = run("launch", agent, "--url", server.url, "--api-key", "se cret", "--", "-p", "a b")
    assert result.exit_code == 0, result.output
    words = shlex.split(result.stdout.replace("\\\n", " "))
    settings = [word for word in words if re.match(r"[A-Z0-9_]+=", word)]
    assert words[len(settings)] == AGENTS[agent].program
    assert words[-2:] == ["-p", "a b"]
    assert "my k2" in result.stdout and server.url in result.stdout and "se cret" in result.stdout


def test_launch_runs_the_agent_with_what_it_would_have_printed(serve, tmp_path):
    program = tmp_path / "claude"
    program.write_text('#!/bin/sh\necho "$ANTHROPIC_BASE_URL $ANTHROPIC_AUTH_TOKEN $*"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    url = serve(ScriptedEngine()).url
    command = [sys.executable, "-m", "hybrid_k2", "launch", "claude", "--url", url, "--exec", "-c"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{url} none --model k2 -c\n", done.stderr


def test_launch_says_what_is_missing(serve, nobody, monkeypatch):
    result = run("launch", "claude", "--url", nobody)
    assert result.exit_code == 1 and "is a server there?" in result.stderr
    monkeypatch.setenv("PATH", "")
    result = run("launch", "codex", "--url", serve(ScriptedEngine()).url, "--exec")
    assert result.exit_code == 1 and "npm install -g @openai/codex" in result.stderr


def test_bench_serve_has_a_row_for_each_load_that_agrees_with_the_server(serve):
    server = serve(ScriptedEngine(context=4000, max_sequences=4))
    options = ("--concurrency", "1", "--concurrency", "4", "--prompt-tokens", "50", "--json")
    result = run(
        *("bench", "serve", "--url", server.url, "--max-tokens", "16", "--requests", "4"), *options
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["concurrency"] for row in rows] == [1, 4]
    for row in rows:
        assert (row["requests"], row["failed"], row["answer_tokens"]) == (4, 0, 16)
        assert row["answer_tokens_per_s"] == pytest.approx(64 / row["elapsed_s"], rel=0.05)
        for figures in (row["ttft_ms"], row["inter_token_ms"], row["whole_ms"]):
            assert 0 <= figures["p50"] <= figures["p90"] <= figures["p99"]
        assert row["ttft_ms"]["p50"] <= row["whole_ms"]["p50"]
    stats = server.engine.core.stats
    assert stats.decode_tokens == 8 * 15
    assert stats.cached_tokens < stats.prefill_tokens / 2  # only the template's own beginning


def test_bench_serve_counts_what_fails_and_says_why(serve, monkeypatch):
    prompts = iter(["hello", CRASH, "hello"])
    monkeypatch.setattr(endpoint_load, "_prompt", lambda num_words, seed: next(prompts))
    url = serve(ScriptedEngine()).url
    result = run("bench", "serve", "--url", url, "--requests", "3", "--max-tokens", "4", "--json")
    row = json.loads(result.stdout)
    assert (row["requests"], row["failed"], result.exit_code) == (2, 1, 0)
    assert "1 failed, the first:" in result.stderr and "internal error" in result.stderr


def test_bench_serve_ends_where_all_fails(serve):
    url = serve(ScriptedEngine(context=300)).url
    result = run("bench", "serve", "--url", url, "--prompt-tokens", "5000", "--requests", "2")
    assert result.exit_code == 2 and "maximum context length" in result.stderr


def test_percentiles_are_values_that_occurred_by_their_nearest_rank():
    hundred = [float(n) for n in range(100, 0, -1)]
    assert endpoint_load.percentiles(hundred) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert endpoint_load.percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert endpoint_load.percentiles([]) == {"p50": None, "p90": None, "p99": None}


@pytest.mark.parametrize(
    ("engine", "needed"),
    [
        ("vllm", {"--tensor-parallel-size": "16", "--tool-call-parser": "kimi_k2"}),
        ("sglang", {"--tp": "16", "--nnodes": "2", "--tool-call-parser": "kimi_k2"}),
        ("trtllm", {"--tp_size": "16", "--ep_size": "8"}),
    ],
)
def test_handover_prints_what_the_deployment_guide_says(engine, needed):
    result = run("handover", "--engine", engine, "--port", "9000")
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    words = shlex.split("\n".join(lines))
    for option, value in {**needed, "--port": "9000"}.items():
        assert words[words.index(option) + 1] == value
    assert "moonshotai/Kimi-K2-Instruct" in words
    assert "16 x H200" in result.stdout.splitlines()[0]


def test_handover_knows_that_later_releases_are_smaller_and_think():
    result = run("handover", "--engine", "vllm", "--model", "moonshotai/Kimi-K2-Thinking", "--json")
    document = json.loads(result.stdout)
    assert "8 x H200" in document["needs"] and "one machine" in document["needs"]
    assert "--reasoning-parser kimi_k2" in "\n".join(document["commands"])

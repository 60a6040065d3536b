"""`hybrid-k2 serve` as a process: what it prints, where it refuses to start, how it stops."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from hybrid_k2.cli import serve as serve_module
from hybrid_k2.cli.main import cli

TIMEOUT_S = 90


def start(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid_k2", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_demo_model_is_served_as_printed_until_ctrl_c():
    with start("--context", "256", "--served-model-name", "tiny") as process:
        try:
            line = process.stdout.readline()
            url = re.search(r"serving tiny at (http://127\.0\.0\.1:\d+/v1)", line)
            assert url, line or process.stderr.read()
            curl = process.stdout.readline() + process.stdout.readline()
            assert f"{url[1]}/chat/completions" in curl
            body = {**json.loads(re.search(r"-d '(.*)'", curl)[1]), "max_tokens": 3}
            request = urllib.request.Request(
                f"{url[1]}/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                assert json.load(response)["usage"]["completion_tokens"] <= 3
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0
            assert "stopped" in process.stderr.read()
        finally:
            process.kill()


def test_a_model_that_cannot_be_opened_ends_the_server(tmp_path):
    with start(str(tmp_path / "none.gguf")) as process:
        try:
            assert process.wait(TIMEOUT_S) == 2
            error = process.stderr.read()
            assert "none.gguf" in error and "Traceback" not in error
        finally:
            process.kill()


def run(*options):
    return CliRunner().invoke(cli, ["serve", *options])


def test_a_busy_port_is_an_error_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "in use" in result.stderr and "--port" in result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_another_address_needs_a_key_or_a_word(host):
    result = run("--host", host)
    assert result.exit_code == 2
    assert "--api-key" in result.stderr and "--insecure" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--port", "70000"),
        ("--port", "-1"),
        ("--host", "no such host"),
        ("--host", "192.0.2.1", "--insecure"),
        ("--api-key", ""),
        ("a.gguf", "--gguf-path", "b.gguf"),
        ("--model-path", "dir"),
    ],
)
def test_a_wrong_option_is_an_error(options):
    assert run(*options).exit_code == 2


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run()
    assert result.exit_code == 2
    assert "pip install" in result.stderr and "uvicorn" in result.stderr


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("K2-Q4_K_M-00001-of-00013.gguf", "K2-Q4_K_M"),
        ("K2.gguf", "K2"),
        ("models/K2", "K2"),
    ],
)
def test_a_model_is_called_as_its_file(tmp_path, file, name):
    assert serve_module._model_name(tmp_path / file) == name

"""`hybrid-k2 serve` as a process: what it prints, where it refuses to start, how it stops."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
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


def health(url):
    """What /health says, whatever its status."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


# K2's documented command for KTransformers, but for the paths and what runs it.
KTRANSFORMERS = (
    *("--max_new_tokens", "600", "--cache_lens", "1024", "--chunk_size", "64"),
    *("--max_batch_size", "2", "--backend_type", "balance_serve"),
)


def serve_once(cache_dir, *options):
    """Streams one answer, with SIGTERM behind its first token: (usage, error output as JSON)."""
    options = (*KTRANSFORMERS, "--cache-dir", str(cache_dir), "--log-format", "json", *options)
    with start(*options) as process:
        try:
            line = process.stdout.readline()
            url = re.search(r"(http://\S+/v1)", line)
            assert url, line or process.stderr.read()
            client = openai.OpenAI(base_url=url[1], api_key="x", max_retries=0)
            stream = client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "one two three " * 40}],
                stream=True,
                extra_body={"ignore_eos": True},
                stream_options={"include_usage": True},
            )
            chunks = [next(stream) for _ in range(3)]
            process.send_signal(signal.SIGTERM)
            while (state := health(url[1]))["status"] == "ready":  # the signal is on its way
                pass
            # It still answers. Nothing may be asked behind this: chunks that are read here were
            # sent a while ago, and behind the last one the server is gone.
            for _ in range(3):
                assert state == {"status": "draining", "open_requests": 1}
                time.sleep(0.1)
                state = health(url[1])
            chunks += stream
            assert process.wait(TIMEOUT_S) == 0
            return chunks[-1].usage, process.stderr.read()
        finally:
            process.kill()


def test_an_answer_under_way_is_finished_and_its_prefix_survives(tmp_path):
    first, errors = serve_once(tmp_path)
    assert first.completion_tokens == 600  # --max_new_tokens
    assert first.prompt_tokens_details.cached_tokens == 0
    assert "MiB of prefixes" in errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    # The answer is sampled: a call in it that no tool was declared for gives a warning's line.
    [request] = [line for line in lines if line["level"] == "info"]
    assert (request["path"], request["status"]) == ("/v1/chat/completions", 200)
    assert request["completion_tokens"] == 600
    again, _ = serve_once(tmp_path, "--cache-quota", "1GiB")
    assert again.prompt_tokens == first.prompt_tokens
    assert again.prompt_tokens_details.cached_tokens >= 0.5 * first.prompt_tokens


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
        ("--cache-quota", "1GiB"),
        ("--cache-quota", "much", "--cache-dir", "x"),
        ("--long-context", "forget"),
        ("--max-batch-size", "many"),
        ("--cors-origin", "*"),
        ("--api-key-file", "none"),
    ],
)
def test_a_wrong_option_is_an_error(options):
    assert run(*options).exit_code == 2


def test_an_empty_key_file_is_an_error(tmp_path):
    (tmp_path / "key").write_text("\n")
    result = run("--api-key-file", str(tmp_path / "key"))
    assert result.exit_code == 2 and "no API key" in result.stderr


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

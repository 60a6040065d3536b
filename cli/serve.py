"""`hybrid-k2 serve`: binds the port, serves /health while the model loads, then the API.

Owns the options, the order of start and stop, and what is printed. What is served is
hybrid_k2.server's business.
"""

import errno
import ipaddress
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybrid_k2.cli.loading_bar import LoadingBar
from hybrid_k2.errors import BadInputError, MissingPackageError

if TYPE_CHECKING:
    from hybrid_k2.server.service import Service

EPILOG = """\b
Examples:
  hybrid-k2 serve                                   the demo model, on http://127.0.0.1:8000/v1
  hybrid-k2 serve K2-Q4_K_M-00001-of-00013.gguf --rules 1gpu-24gb --context 32768
  hybrid-k2 serve --model-path Kimi-K2-Instruct --gguf-path Kimi-K2-Instruct-GGUF --port 9000
  hybrid-k2 serve K2.gguf --host 0.0.0.0 --api-key "$(cat key)"   for other machines, too

\b
Ctrl-C lets the answers under way finish, a second Ctrl-C does not.
"""

DRAIN_S = 30


@click.command(
    "serve", epilog=EPILOG, short_help="Serve a model over OpenAI's and Anthropic's APIs."
)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--api-key", help="Clients must send it as 'Authorization: Bearer KEY' or x-api-key.")
@click.option("--insecure", is_flag=True, help="Let other machines in without an --api-key.")
@click.option("--allowed-host", multiple=True, help="Another name clients may use; repeatable.")
@click.option("--served-model-name", help="The model's name in the API. [default: the file's]")
@click.option("--rules", default="auto", show_default=True, help="A path, a shipped name, or auto.")
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option("--context", type=int, help="Tokens of one prompt and answer; 0 is the model's most.")
@click.option("--threads", type=int, help="CPU threads. [default: the cores this may use]")
@click.option(
    "--exact-temperature",
    is_flag=True,
    help="Take the temperature of /v1/messages as it is, not x 0.6 for Instruct models.",
)
def command(
    model: Path | None,
    port: int,
    host: str,
    api_key: str | None,
    insecure: bool,
    allowed_host: tuple[str, ...],
    served_model_name: str | None,
    rules: str,
    model_path: Path | None,
    gguf_path: Path | None,
    context: int | None,
    threads: int | None,
    exact_temperature: bool,
) -> None:
    """Serve MODEL at /v1/chat/completions for OpenAI's clients and /v1/messages for Anthropic's.

    MODEL is a GGUF file, the first file of a split set, or a directory of them; without it, the
    demo model that ships with the package. Exit code 2 where an option, the file or the port is
    wrong.
    """
    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    if model_path and not (model or gguf_path):
        raise click.UsageError(
            "--model-path names config and tokenizer; give the weights as MODEL or with --gguf-path"
        )
    model = model or gguf_path
    if api_key is not None and not api_key.strip():
        raise click.UsageError("--api-key is empty; leave it out or give a key")
    if not (_is_loopback(host) or api_key or insecure):
        raise BadInputError(
            f"--host {host} lets other machines use this one; give --api-key KEY, "
            "or --insecure if everybody who can reach it may"
        )
    _require_packages()
    from hybrid_k2.server.service import Service
    from hybrid_k2.server.settings import ServerSettings

    settings = ServerSettings(
        model_name=served_model_name or _model_name(model),
        host=host,
        api_key=api_key,
        allowed_hosts=allowed_host,
        scale_temperature=not exact_temperature,
    )
    # Bound before loading: twenty minutes are too long to learn that the port is taken.
    listener = _bind(host, port)
    with listener:
        engine = (model, rules, model_path, {"context": context, "num_threads": threads})
        _Run(Service(settings), listener, engine).serve()


class _Run:
    """One run of the server: uvicorn in this thread, which gets the signals, loading in another."""

    def __init__(
        self,
        service: "Service",
        listener: socket.socket,
        engine: tuple[Path | None, str, Path | None, dict[str, Any]],
    ) -> None:
        import uvicorn

        from hybrid_k2.server.app import create_app

        self._service = service
        self._listener = listener
        self._engine_options = engine
        self._is_stopping = threading.Event()
        self._error: BaseException | None = None
        config = uvicorn.Config(
            create_app(service),
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = uvicorn.Server(config)

    def serve(self) -> None:
        """Returns after a drained Ctrl-C; raises what loading raised."""
        loading = threading.Thread(target=self._load_and_wait, name="loading")
        loading.start()
        try:
            self._server.run(sockets=[self._listener])
        except KeyboardInterrupt:  # uvicorn raises it again once it has drained
            if not self._service.is_loaded and self._error is None:
                raise
        finally:
            self._is_stopping.set()
            loading.join()
        if self._error is not None:
            raise self._error
        click.echo("stopped", err=True)

    def _load_and_wait(self) -> None:
        """Owns the engine: opens it, keeps it while the server runs, closes it."""
        from hybrid_k2 import Engine

        model, rules, model_path, runtime = self._engine_options
        try:
            with LoadingBar(sys.stderr) as bar:
                progress = _Progress(self._service, bar, self._is_stopping)
                engine = Engine.open(model, rules, model_path, progress, **runtime)
            with engine:
                engine.template  # noqa: B018  a missing tokenizer shows here, not at a request
                self._service.attach(engine)
                _print_ready(engine.notice, self._service, self._listener)
                self._is_stopping.wait()
        except _LoadingStopped:
            pass
        except BaseException as error:
            self._error = error
            self._server.should_exit = True


class _LoadingStopped(Exception):
    """Ctrl-C came while the model was loading."""


class _Progress:
    """Passes a loader's progress on to /health and the terminal; ends it when the server stops."""

    def __init__(self, service: "Service", bar: LoadingBar, is_stopping: threading.Event) -> None:
        self._service = service
        self._bar = bar
        self._is_stopping = is_stopping

    def __call__(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        if self._is_stopping.is_set():
            raise _LoadingStopped
        self._service.report_progress(phase, done_bytes, total_bytes)
        self._bar(phase, done_bytes, total_bytes)


def _print_ready(notice: str | None, service: "Service", listener: socket.socket) -> None:
    settings = service.settings
    url = f"http://{_shown_host(listener)}:{listener.getsockname()[1]}/v1"
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.api_key else ""
    body = (
        f'{{"model": "{settings.model_name}", "messages": [{{"role": "user", "content": "Hi"}}]}}'
    )
    if notice:
        click.echo(notice, err=True)
    click.echo(f"serving {settings.model_name} at {url} (Ctrl-C stops)")
    click.echo(f"try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' \\")
    click.echo(f"       -d '{body}'")


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"hybrid-k2 serve needs the package {error.name}: pip install fastapi uvicorn"
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; BadInputError where the address or port cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number in errno.errorcode else error
        raise BadInputError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --port or --host"
        ) from error


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown_host(listener: socket.socket) -> str:
    host = listener.getsockname()[0]
    if ipaddress.ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _model_name(model: Path | None) -> str:
    """The file's name without its split's number, a directory's own."""
    if model is None:
        return "demo"
    return re.sub(r"-\d{5}-of-\d{5}$", "", model.resolve().name.removesuffix(".gguf"))

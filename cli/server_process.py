"""One run of the server: the port is bound, /health answers while the model loads, then the API.

Owns the order of start and stop: the first Ctrl-C or SIGTERM lets the answers under way finish,
then the prefix cache is saved; a second one does not wait. What is served is hybrid_k2.server's
business, the options are serve.py's.
"""

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import click
import uvicorn

from hybrid_k2 import Engine
from hybrid_k2.cli.loading_bar import LoadingBar
from hybrid_k2.errors import BadInputError
from hybrid_k2.server.app import create_app
from hybrid_k2.server.service import Service

DRAIN_S = 30

OpenEngine = Callable[[Callable[[str, int, int], None]], Engine]


def run(service: Service, listener: socket.socket, open_engine: OpenEngine) -> None:
    """Serves until a signal; raises what opening the engine raised.

    open_engine: called with a progress callback, in a thread beside the one that serves.
    """
    _Run(service, listener, open_engine).serve()


def bind(host: str, port: int) -> socket.socket:
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


class _DrainingServer(uvicorn.Server):
    """uvicorn, which on a signal goes on until no answer is under way, DRAIN_S at most."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_until_s = 0.0
        self.was_interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        self.was_interrupted = sig == signal.SIGINT
        self._drain_until_s = time.monotonic() + DRAIN_S
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        is_over = await super().on_tick(counter)
        if not self._service.is_draining:
            return is_over
        is_drained = self._service.num_open == 0 or time.monotonic() > self._drain_until_s
        return is_over or is_drained


class _Run:
    """uvicorn in this thread, which gets the signals, the engine's life in another."""

    def __init__(self, service: Service, listener: socket.socket, open_engine: OpenEngine) -> None:
        self._service = service
        self._listener = listener
        self._open_engine = open_engine
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
        self._server = _DrainingServer(config, service)

    def serve(self) -> None:
        loading = threading.Thread(target=self._load_and_wait, name="loading")
        loading.start()
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._is_stopping.set()
            loading.join()
        if self._error is not None:
            raise self._error
        if self._server.was_interrupted and not self._service.is_loaded:
            raise KeyboardInterrupt
        click.echo("stopped", err=True)

    def _load_and_wait(self) -> None:
        """Owns the engine: opens it, keeps it while the server runs, saves its cache, closes it."""
        try:
            with LoadingBar(sys.stderr) as bar:
                engine = self._open_engine(_Progress(self._service, bar, self._is_stopping))
            with engine:
                engine.template  # noqa: B018  a missing tokenizer shows here, not at a request
                self._service.attach(engine)
                _print_ready(engine.notice, self._service, self._listener)
                self._is_stopping.wait()
                self._service.close()  # in a hurry uvicorn leaves that out
                if not self._server.force_exit:
                    _save_cache(engine)
        except _LoadingStopped:
            pass
        except BaseException as error:
            self._error = error
            self._server.should_exit = True


class _LoadingStopped(Exception):
    """The server was told to stop while the model was loading."""


class _Progress:
    """Passes a loader's progress on to /health and the terminal; ends it when the server stops."""

    def __init__(self, service: Service, bar: LoadingBar, is_stopping: threading.Event) -> None:
        self._service = service
        self._bar = bar
        self._is_stopping = is_stopping

    def __call__(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        if self._is_stopping.is_set():
            raise _LoadingStopped
        self._service.report_progress(phase, done_bytes, total_bytes)
        self._bar(phase, done_bytes, total_bytes)


def _save_cache(engine: Engine) -> None:
    """What is kept of prompts survives a restart; the engine's own thread has ended."""
    num_bytes = engine.core.save_cache()
    if num_bytes:
        click.echo(f"saved {num_bytes / 2**20:.0f} MiB of prefixes", err=True)


def _print_ready(notice: str | None, service: Service, listener: socket.socket) -> None:
    settings = service.settings
    url = f"http://{_shown_host(listener)}:{listener.getsockname()[1]}/v1"
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.api_keys else ""
    body = (
        f'{{"model": "{settings.model_name}", "messages": [{{"role": "user", "content": "Hi"}}]}}'
    )
    if notice:
        click.echo(notice, err=True)
    click.echo(f"serving {settings.model_name} at {url} (Ctrl-C stops)")
    click.echo(f"try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' \\")
    click.echo(f"       -d '{body}'")


def _shown_host(listener: socket.socket) -> str:
    host = listener.getsockname()[0]
    if ipaddress.ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host

"""A real uvicorn on a free loopback port, in a thread, with the official clients for it.

Owns starting and stopping. Knows nothing of what a test asks.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
import uvicorn
from server.scripted_engine import ScriptedEngine

from hybrid_k2.server.app import create_app
from hybrid_k2.server.service import Service
from hybrid_k2.server.settings import ServerSettings

TIMEOUT_S = 20


class RunningServer(uvicorn.Server):
    """Serves until stop(). `engine` None leaves the service loading."""

    def __init__(self, engine: ScriptedEngine | None, settings: ServerSettings) -> None:
        self.engine = engine
        self.service = Service(settings)
        if engine is not None:
            self.service.attach(engine)
        config = uvicorn.Config(create_app(self.service), log_level="warning")
        super().__init__(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self.run, args=([self._socket],), daemon=True)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S), "the server did not start"

    def stop(self) -> None:
        self.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": TIMEOUT_S, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def anthropic(self, **options: Any) -> anthropic.Anthropic:
        options = {"api_key": "none", "max_retries": 0, "timeout": TIMEOUT_S, **options}
        return anthropic.Anthropic(base_url=self.url, **options)

    def connect(self) -> socket.socket:
        """A raw connection, for requests that no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def next_end(self) -> str:
        """How the next request to end in the engine ended."""
        assert self.engine is not None
        return self.engine.core.ended.get(timeout=TIMEOUT_S)


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers: serve(engine, **settings); they stop when the test ends."""
    servers = []

    def start(engine: ScriptedEngine | None = None, **settings: Any) -> RunningServer:
        settings = ServerSettings(**{"model_name": "k2", "keep_alive_s": TIMEOUT_S, **settings})
        servers.append(RunningServer(engine, settings))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        if server.engine is not None:
            server.engine.model.gate.set()
        server.stop()

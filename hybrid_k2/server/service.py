"""What the routes share: the settings, the metrics, and the engine once it is loaded.

Owns the states of a server's life: loading, ready, draining. Knows nothing of HTTP routes or of how
a model is loaded.
"""

import functools
import time
from typing import Any

from hybrid_k2.engine import EngineCore
from hybrid_k2.server.engine_thread import SHUTTING_DOWN, EngineThread
from hybrid_k2.server.errors import unavailable
from hybrid_k2.server.metrics import Metrics
from hybrid_k2.server.settings import ServerSettings
from hybrid_k2.text.json_grammar import JsonGrammars


class Service:
    """Created before the model is there, so that /health can answer; attach() makes it ready."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.started = int(time.time())
        self._engine: Any = None
        self._thread: EngineThread | None = None
        self._progress = ("starting", 0, 0)
        self._is_draining = False
        self.metrics = Metrics()

    def attach(self, engine: Any) -> None:
        """Gives the service its engine (`core`, `tokenizer`, `template`), whose thread starts.

        The caller still owns the engine and closes it after close().
        """
        thread = EngineThread(
            engine.core,
            self.metrics,
            max_waiting=self.settings.max_waiting,
            stream_interval_s=self.settings.stream_interval_s,
        )
        thread.start()
        self._engine, self._thread = engine, thread

    def report_progress(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Takes a loader's progress, for /health. Callable from any thread."""
        self._progress = (phase, done_bytes, total_bytes)

    def drain(self) -> None:
        """From now on new requests get a 503; those under way go on. Callable from any thread."""
        self._is_draining = True

    @property
    def is_loaded(self) -> bool:
        return self._thread is not None

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def num_open(self) -> int:
        """Answers under way or waiting."""
        return self._thread.num_open if self._thread is not None else 0

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes loaded, and bytes in all of the present phase of loading."""
        return self._progress[1:]

    @property
    def model_name(self) -> str:
        return self.settings.model_name

    @property
    def engine(self) -> Any:
        """Raises a 503 while the model is loading."""
        if self._engine is None:
            raise unavailable("Loading model", self.health())
        return self._engine

    @functools.cached_property
    def grammars(self) -> JsonGrammars:
        """Raises a 503 while the model is loading."""
        return JsonGrammars(self.engine.tokenizer)

    @property
    def thread(self) -> EngineThread:
        """Raises a 503 while the model is loading, and once the server is draining."""
        if self._is_draining:
            raise unavailable(SHUTTING_DOWN)
        if self._thread is None:
            raise unavailable("Loading model", self.health())
        return self._thread

    @property
    def core(self) -> EngineCore:
        """Raises a 503 while the model is loading."""
        return self.engine.core

    def health(self) -> dict[str, Any]:
        """What /health says."""
        if self.is_draining:
            return {"status": "draining", "open_requests": self.num_open}
        if self.is_loaded:
            return {"status": "ready", "model": self.model_name}
        phase, done_bytes, total_bytes = self._progress
        return {
            "status": "loading",
            "phase": phase,
            "done_bytes": done_bytes,
            "total_bytes": total_bytes,
        }

    def close(self) -> None:
        """Ends the engine's thread; requests still open get a 503."""
        if self._thread is not None:
            self._thread.close()

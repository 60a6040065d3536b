"""What does HTTP cost? Tokens a second of the server against the engine's own loop, one request.

    python benchmarks/server_overhead.py [MODEL.gguf] [--tokens 256] [--rounds 5]

Both run the same engine on the same prompt, greedily, in turns, from the first token to the last;
the ratio of the best rounds, which other programs disturbed least, is the figure. Without a model
the demo model runs: its token costs a millisecond or two, K2's more than fifty, so that the ratio
there is the worst that will be seen.
"""

import argparse
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from hybrid_k2 import Engine
from hybrid_k2.engine import SamplingParams
from hybrid_k2.server.app import create_app
from hybrid_k2.server.service import Service
from hybrid_k2.server.settings import ServerSettings

MESSAGES = [{"role": "user", "content": "Count as far as you can."}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    loop_s, server_s = [], []
    with Engine.open(options.model, context=options.tokens + 128) as engine:
        for _ in range(options.rounds):
            loop_s.append(loop_seconds(engine, options.tokens))
            with serving(engine) as url:  # its thread must not share the engine with the loop above
                server_s.append(served_seconds(url, options.tokens))
    own, served = min(loop_s), min(server_s)
    print(f"engine's own loop  {own * 1e3:8.3f} ms a token")
    print(f"server, streamed   {served * 1e3:8.3f} ms a token")
    print(f"HTTP costs         {(served - own) * 1e6:8.1f} us a token")
    print(f"ratio              {own / served:8.3f}")


def loop_seconds(engine: Engine, num_tokens: int) -> float:
    """Seconds a token of engine.generate."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    arrivals = [
        time.perf_counter() for _ in engine.generate(engine.template.render(MESSAGES), params)
    ]
    return (arrivals[-1] - arrivals[0]) / (num_tokens - 1)


def served_seconds(url: str, num_tokens: int) -> float:
    """Seconds a token of a streamed chat completion, as a client on this machine sees it."""
    body = {
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"continuous_usage_stats": True},  # an event may hold several tokens
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    arrivals = []
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                arrivals.append((time.perf_counter(), line))
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for _, line in arrivals]
    first = next(index for index, count in enumerate(counts) if count > 0)
    elapsed_s = arrivals[-1][0] - arrivals[first][0]
    return elapsed_s / (counts[-1] - counts[first])


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of a server over an engine, which is the caller's again afterwards."""
    service = Service(ServerSettings())
    service.attach(engine)
    config = uvicorn.Config(create_app(service), http="h11", ws="none", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()

"""What does HTTP cost? Tokens a second of the server against the engine's own loop, one request.

    python benchmarks/server_overhead.py [MODEL.gguf] [--tokens 256] [--rounds 5]

Both run the same engine on the same prompt, greedily, in turns, from the first token to the last.
The ratio of the best rounds is the figure on a quiet machine; where that and the ratio of the
medians differ, the machine is not, and neither means much. The client is a process of its own that
does nothing but read the socket. Beside the ratio stands the processor's time that the server's
thread takes, which other programs disturb less. Without a model the demo model runs: its token
costs some 7 milliseconds on two cores, K2's about a hundred, so that the ratio there is the worst
that will be seen.
"""

import argparse
import http.client
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import uvicorn

from hybrid_k2 import Engine
from hybrid_k2.engine import SamplingParams
from hybrid_k2.server.app import create_app
from hybrid_k2.server.service import Service
from hybrid_k2.server.settings import ServerSettings

MESSAGES = [{"role": "user", "content": "Count as far as you can."}]
K2_TOKEN_S = 0.1  # what the README plans for Q4_K on a workstation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    loop_s, server_s, thread_s = [], [], []
    with (
        multiprocessing.get_context("spawn").Pool(1) as client,
        Engine.open(options.model, context=options.tokens + 128) as engine,
    ):
        for _ in range(options.rounds):
            loop_s.append(loop_seconds(engine, options.tokens))
            # The engine is the server's alone until that has ended.
            with serving(engine) as (port, thread):
                before_s = cpu_seconds(thread)
                server_s.append(client.apply(served_seconds, (port, options.tokens)))
                thread_s.append((cpu_seconds(thread) - before_s) / options.tokens)
    own, served = min(loop_s), min(server_s)
    print(f"engine's own loop  {own * 1e3:8.3f} ms a token")
    print(f"server, streamed   {served * 1e3:8.3f} ms a token")
    print(f"HTTP costs         {(served - own) * 1e6:8.1f} us a token")
    print(f"server's thread    {min(thread_s) * 1e6:8.1f} us of processor a token")
    print(f"ratio              {own / served:8.3f}")
    print(f"ratio of medians   {median(loop_s) / median(server_s):8.3f}")
    print(f"at 100 ms a token  {K2_TOKEN_S / (K2_TOKEN_S + served - own):8.3f}")


def loop_seconds(engine: Engine, num_tokens: int) -> float:
    """Seconds a token of engine.generate."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    arrivals = [
        time.perf_counter() for _ in engine.generate(engine.template.render(MESSAGES), params)
    ]
    return (arrivals[-1] - arrivals[0]) / (num_tokens - 1)


def served_seconds(port: int, num_tokens: int) -> float:
    """Seconds a token of a streamed chat completion, as a client on this machine sees it."""
    body = {
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"continuous_usage_stats": True},  # an event may hold several tokens
    }
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    arrivals = []
    while data := response.read1():
        arrivals.append((time.perf_counter(), data))
    connection.close()
    counts = []
    for at_s, data in arrivals:
        events = [line for line in data.split(b"\n") if line.startswith(b"data: {")]
        if events:
            counts.append((at_s, json.loads(events[-1][6:])["usage"]["completion_tokens"]))
    counts = [(at_s, count) for at_s, count in counts if count > 0]
    (first_s, first), (last_s, last) = counts[0], counts[-1]
    return (last_s - first_s) / (last - first)


def cpu_seconds(thread: threading.Thread) -> float:
    """What a thread has used of the processor."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@contextmanager
def serving(engine: Engine) -> Iterator[tuple[int, threading.Thread]]:
    """Port and thread of a server over an engine, which is the caller's again afterwards."""
    service = Service(ServerSettings())
    service.attach(engine)
    config = uvicorn.Config(create_app(service), http="h11", ws="none", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1], thread
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()

"""Does a server stay whole for as long as many clients come and go?

    python tests/server/soak.py [--minutes 10] [--clients 64] [--model exact|demo|FILE.gguf]

The server runs in a process of its own. All clients stream greedy answers one after the other; a
third of the requests are left at a random point. In the end every answer must have been what a
single client got before, no place may be taken, and the process's memory may not have grown by more
than 2% since the first half of the time. Exit code 1 otherwise.

`exact` puts the real engine over a model whose next token is a function of all tokens before it: an
answer that has anything of another request's shows at once. `demo`, or a file, is `hybrid-k2 serve`
as users have it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai

MOST_GROWTH = 0.02
SHARE_LEFT = 1 / 3
MOST_TOKENS = 24
WORDS = "the model reads what you write and answers in a few words about rivers".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="exact")
    options = parser.parse_args()
    with _server(_command(options.model)) as (url, pid):
        soak = Soak(url, pid, options.seed)
        asyncio.run(soak.run(options.clients, options.minutes * 60))
        return 0 if soak.report() else 1


class Soak:
    """One run and what it found."""

    def __init__(self, url: str, pid: int, seed: int) -> None:
        self._url = url
        self._pid = pid
        self._random = random.Random(seed)
        self._prompts = [self._prompt() for _ in range(24)]
        self._expected: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._rss: list[tuple[float, int]] = []

    async def run(self, num_clients: int, seconds: float) -> None:
        """Asks every prompt alone, then all clients ask until the time is over."""
        async with self._client() as client:
            for prompt in self._prompts:
                self._expected[prompt] = await self._answer(client, prompt)
        end_s = time.monotonic() + seconds
        await asyncio.gather(
            self._watch(end_s), *(self._ask_until(end_s) for _ in range(num_clients))
        )

    def report(self) -> bool:
        """Prints what was found; True where all of it is as it should be."""
        begin_s, end_s = self._rss[0][0], self._rss[-1][0]
        quarter_s = (end_s - begin_s) / 4
        early = max(rss for at_s, rss in self._rss if at_s <= begin_s + 2 * quarter_s)
        late = max(rss for at_s, rss in self._rss if at_s >= end_s - quarter_s)
        growth = late / early - 1
        busy = [slot for slot in self._get("/slots") if slot["is_processing"]]
        print(json.dumps(self._counts))
        print(f"memory {early / 2**20:.1f} -> {late / 2**20:.1f} MiB ({growth:+.2%})")
        print(f"places taken in the end: {len(busy)}")
        is_right = set(self._counts) <= {"answered", "left"} and self._counts["answered"] > 0
        return is_right and not busy and growth <= MOST_GROWTH

    async def _ask_until(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            prompt = self._random.choice(self._prompts)
            leaves = self._random.random() < SHARE_LEFT
            try:
                async with self._client() as client:
                    if leaves:
                        most_chunks = self._random.randrange(MOST_TOKENS // 2)
                        await self._answer(client, prompt, most_chunks)
                        self._counts["left"] += 1
                    else:
                        is_right = await self._answer(client, prompt) == self._expected[prompt]
                        self._counts["answered" if is_right else "answered otherwise"] += 1
            except openai.APIError as error:
                self._counts[repr(error)[:80]] += 1

    async def _answer(
        self, client: openai.AsyncOpenAI, prompt: str, most_chunks: int | None = None
    ) -> str:
        stream = await client.chat.completions.create(
            model="soak",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=MOST_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text, num_chunks = "", 0
        async with stream:
            async for chunk in stream:
                if num_chunks == most_chunks:
                    break
                num_chunks += 1
                text += chunk.choices[0].delta.content or ""
        return text

    async def _watch(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            self._rss.append((time.monotonic(), self._memory()))
            await asyncio.sleep(1)

    def _memory(self) -> int:
        """Resident bytes of the server."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def _prompt(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randrange(2, 60)))

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="x", max_retries=0, timeout=600
        )

    def _get(self, path: str) -> list[dict[str, object]]:
        with urllib.request.urlopen(f"{self._url}{path}", timeout=60) as response:
            return json.load(response)


def _command(model: str) -> tuple[str, ...]:
    if model == "exact":
        return sys.executable, str(Path(__file__).with_name("exact_server.py"))
    serve = (sys.executable, "-m", "hybrid_k2", "serve", *([] if model == "demo" else [model]))
    return *serve, "--port", "0", "--served-model-name", "soak", "--max-waiting", "1000"


@contextlib.contextmanager
def _server(command: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"(http://\S+)/v1", line)[1], process.pid
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    sys.exit(main())

"""`hybrid-k2 bench serve`: time to first token, time between tokens, throughput of any server.

Owns options and the table; measuring is endpoint_load.py's.
"""

import json
import sys
import time
from typing import Any

import click

from hybrid_k2.cli.endpoint_load import Load, measure
from hybrid_k2.cli.remote import RemoteServer

EPILOG = """\b
Examples:
  hybrid-k2 bench serve --url http://127.0.0.1:8000
  hybrid-k2 bench serve --url http://127.0.0.1:8000 --concurrency 1 --concurrency 8
  hybrid-k2 bench serve --url https://10.0.0.5/v1 --api-key "$(cat key)" --prompt-tokens 4096 --json
"""
_HEAD = (
    f"{'conc':>5} {'requests':>8} {'failed':>6} {'prompt':>6} {'answer':>6} {'tok/s':>8}   "
    f"{'ttft ms p50/p90/p99':>22}   {'inter-token ms p50/p90/p99':>27}"
)


@click.command("serve", epilog=EPILOG, short_help="Measure a running server, any OpenAI endpoint.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's.")
@click.option("--api-key", help="Where the server has one.")
@click.option("--model", help="The model's name. [default: the server's first]")
@click.option(
    "--concurrency",
    "concurrencies",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=[1],
    show_default=True,
    help="Requests at once; repeatable, a row each.",
)
@click.option("--requests", type=click.IntRange(1), help="In each row. [default: 4 x concurrency]")
@click.option(
    "--prompt-tokens",
    "prompts",
    multiple=True,
    type=click.IntRange(1, 1_000_000),
    default=[128],
    show_default=True,
    help="About how long prompts are; repeatable.",
)
@click.option(
    "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each answer."
)
@click.option("--seed", type=int, help="The same seed asks the same. [default: another each time]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    url: str,
    api_key: str | None,
    model: str | None,
    concurrencies: tuple[int, ...],
    requests: int | None,
    prompts: tuple[int, ...],
    max_tokens: int,
    seed: int | None,
    as_json: bool,
) -> None:
    """Send streamed chat completions to a server and say how long their tokens took.

    Prompts have nothing in common, so no prefix cache helps. The time between tokens is each
    request's mean; throughput counts all answers' tokens over the whole row. Exit code 1 where the
    server cannot be reached or every request fails.
    """
    server = RemoteServer(url, api_key)
    name = server.model_card(model)["id"]
    seed = int(time.time()) if seed is None else seed
    if not as_json:
        click.echo(f"{name} at {server.root}")
        click.echo(_HEAD)
    for prompt_tokens in prompts:
        for concurrency in concurrencies:
            load = Load(name, concurrency, requests or 4 * concurrency, prompt_tokens, max_tokens)
            seed += load.num_requests
            with click.progressbar(
                length=load.num_requests, file=sys.stderr, label=f"{concurrency} at once"
            ) as bar:
                row = measure(server, load, seed, lambda bar=bar: bar.update(1))
            click.echo(json.dumps({"model": name, **row}) if as_json else _line(row))
            if row["failed"]:
                click.echo(f"{row['failed']} failed, the first: {row['error']}", err=True)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['concurrency']:5} {row['requests']:8} {row['failed']:6} {row['prompt_tokens']:6} "
        f"{row['answer_tokens']:6} {row['answer_tokens_per_s']:8.1f}   "
        f"{_shown(row['ttft_ms']):>22}   {_shown(row['inter_token_ms']):>27}"
    )


def _shown(of: dict[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.1f}" for value in of.values())

"""`hybrid-k2 serve`: the options of the server, and what they must not be.

How it starts, runs and stops is server_process.py's, what is served hybrid_k2.server's business.
"""

import ipaddress
import re
from pathlib import Path

import click

from hybrid_k2.cli.size import Size
from hybrid_k2.errors import BadInputError, MissingPackageError

EPILOG = """\b
Examples:
  hybrid-k2 serve                                   the demo model, on http://127.0.0.1:8000/v1
  hybrid-k2 serve K2-Q4_K_M-00001-of-00013.gguf --rules 1gpu-24gb --context 32768
  hybrid-k2 serve --model-path Kimi-K2-Instruct --gguf-path Kimi-K2-Instruct-GGUF --port 9000
  hybrid-k2 serve K2.gguf --parallel 2 --cache-dir /var/cache/hybrid-k2
  hybrid-k2 serve K2.gguf --host 0.0.0.0 --api-key "$(cat key)"   for other machines, too

\b
The first Ctrl-C or SIGTERM lets the answers under way finish and saves the prefixes kept, a second
one does not.
"""

REASONING_FIELDS = ("reasoning_content", "reasoning")


@click.command(
    "serve",
    epilog=EPILOG,
    short_help="Serve a model over OpenAI's and Anthropic's APIs.",
    # KTransformers spells its options with underscores.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
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
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    help="Clients must send it as 'Authorization: Bearer KEY' or x-api-key; repeatable.",
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a key a line, which `ps` does not show.",
)
@click.option("--insecure", is_flag=True, help="Let other machines in without an --api-key.")
@click.option("--allowed-host", multiple=True, help="Another name clients may use; repeatable.")
@click.option(
    "--cors-origin",
    multiple=True,
    help="Pages of this origin may use the API; repeatable, '*' with a key only. [default: none]",
)
@click.option("--served-model-name", help="The model's name in the API. [default: the file's]")
@click.option(
    "--rules",
    "--optimize-config-path",
    default="auto",
    show_default=True,
    help="A path, a shipped name, or auto.",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option(
    "--context",
    "--cache-lens",
    type=int,
    help="Tokens of one prompt and answer; 0 is the model's most.",
)
@click.option(
    "--parallel",
    "--max-batch-size",
    type=int,
    help="Requests answered at once, each with the whole context. [default: 4]",
)
@click.option("--chunk-size", type=int, help="Tokens of a prompt read in one step. [default: 512]")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    help="Tokens of an answer whose request names no length. [default: all that fit]",
)
@click.option("--threads", type=int, help="CPU threads. [default: the cores this may use]")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where prefixes of prompts are kept over restarts. [default: nowhere]",
)
@click.option("--cache-quota", type=Size(), help="Most of that, as 64GiB. [default: 64GiB]")
@click.option(
    "--long-context",
    type=click.Choice(["error", "hide-tool-outputs"]),
    default="error",
    show_default=True,
    help="A dialogue beyond the context: refuse it, or leave earlier tools' outputs out.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Requests that may wait for a place before the next gets a 429.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(1),
    default=3600.0,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--reasoning-field",
    type=click.Choice(["both", *REASONING_FIELDS]),
    default="both",
    show_default=True,
    help="Where chat completions put reasoning.",
)
@click.option(
    "--exact-temperature",
    is_flag=True,
    help="Take the temperature of /v1/messages as it is, not x 0.6 for Instruct models.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How requests are logged; what is said in them never is.",
)
@click.option("--backend-type", hidden=True, help="KTransformers' option; there is one backend.")
def command(
    model: Path | None,
    port: int,
    host: str,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    insecure: bool,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    served_model_name: str | None,
    rules: str,
    model_path: Path | None,
    gguf_path: Path | None,
    context: int | None,
    parallel: int | None,
    chunk_size: int | None,
    max_new_tokens: int | None,
    threads: int | None,
    cache_dir: Path | None,
    cache_quota: int | None,
    long_context: str,
    max_waiting: int,
    request_timeout: float,
    reasoning_field: str,
    exact_temperature: bool,
    log_format: str,
    backend_type: str | None,
) -> None:
    """Serve MODEL at /v1/chat/completions and /v1/responses for OpenAI's clients and /v1/messages
    for Anthropic's.

    MODEL is a GGUF file, the first file of a split set, or a directory of them; without it, the
    demo model that ships with the package. KTransformers' options mean here what they mean there.
    Exit code 2 where an option, the file or the port is wrong.
    """
    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    if model_path and not (model or gguf_path):
        raise click.UsageError(
            "--model-path names config and tokenizer; give the weights as MODEL or with --gguf-path"
        )
    if cache_quota is not None and cache_dir is None:
        raise click.UsageError("--cache-quota limits --cache-dir; give that, too")
    model = model or gguf_path
    keys = _all_keys(api_keys, api_key_file)
    if not (_is_loopback(host) or keys or insecure):
        raise BadInputError(
            f"--host {host} lets other machines use this one; give --api-key KEY, "
            "or --insecure if everybody who can reach it may"
        )
    if "*" in cors_origin and not keys:
        raise BadInputError(
            "--cors-origin '*' lets every page in a browser use this server; give --api-key KEY, "
            "or name the pages' origins"
        )
    _require_packages()
    from hybrid_k2 import Engine
    from hybrid_k2.cli import request_log, server_process
    from hybrid_k2.server.service import Service
    from hybrid_k2.server.settings import ServerSettings

    settings = ServerSettings(
        model_name=served_model_name or _model_name(model),
        host=host,
        api_keys=keys,
        allowed_hosts=allowed_host,
        cors_origins=cors_origin,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout,
        max_new_tokens=max_new_tokens,
        hide_tool_outputs=long_context == "hide-tool-outputs",
        reasoning_fields=REASONING_FIELDS if reasoning_field == "both" else (reasoning_field,),
        scale_temperature=not exact_temperature,
    )
    runtime = {
        "context": context,
        "num_threads": threads,
        "max_sequences": parallel,
        "prefill_chunk": chunk_size,
        "cache_dir": cache_dir,
        "cache_quota_bytes": cache_quota,
    }
    request_log.log_requests(as_json=log_format == "json")
    # Bound before loading: twenty minutes are too long to learn that the port is taken.
    with server_process.bind(host, port) as listener:
        server_process.run(
            Service(settings),
            listener,
            lambda progress: Engine.open(model, rules, model_path, progress, **runtime),
        )


def _all_keys(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    if file is not None:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        from_file = tuple(line.strip() for line in lines if line.strip())
        if not from_file:
            raise click.UsageError(f"{file} has no API key; write one a line, or leave it out")
        given += from_file
    if not all(key.strip() for key in given):
        raise click.UsageError("the API key is empty; leave the option out or give a key")
    return given


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"hybrid-k2 serve needs the package {error.name}: "
            "pip install fastapi uvicorn prometheus_client"
        ) from error


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _model_name(model: Path | None) -> str:
    """The file's name without its split's number, a directory's own."""
    if model is None:
        return "demo"
    return re.sub(r"-\d{5}-of-\d{5}$", "", model.resolve().name.removesuffix(".gguf"))

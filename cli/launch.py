"""`hybrid-k2 launch`: a coding agent set up for this server, printed as a command or run.

Owns what each agent wants to be told; changes no file of any agent's. Knows nothing of models.
"""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click

from hybrid_k2.cli.remote import RemoteServer
from hybrid_k2.errors import HybridK2Error

EPILOG = """\b
Examples:
  hybrid-k2 launch claude                      print the command for a server at port 8000
  hybrid-k2 launch codex --exec                run it here
  hybrid-k2 launch qwen --url http://10.0.0.5:8000 --api-key "$(cat key)" --exec -- -p "Say hi"
"""
NO_KEY = "none"  # agents want one; a server without keys takes any


@dataclass(frozen=True, slots=True)
class Setup:
    """How to start an agent: arguments of its program, and variables of its environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Agent:
    """setup: called with the server's address without /v1, the model's name and the key."""

    program: str
    package: str
    setup: Callable[[str, str, str], Setup]


def _claude(url: str, model: str, key: str) -> Setup:
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,  # its titles and summaries come from here, too
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return Setup(("--model", model), environment)


def _codex(url: str, model: str, key: str) -> Setup:
    provider = {
        "name": "hybrid-k2",
        "base_url": f"{url}/v1",
        "wire_api": "responses",
        "env_key": "K2_API_KEY",
    }
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in provider.items())
    settings = (
        f"model={json.dumps(model)}",
        'model_provider="k2"',
        f"model_providers.k2={{ {table} }}",
    )
    arguments = tuple(word for setting in settings for word in ("-c", setting))
    return Setup(arguments, {"K2_API_KEY": key})


def _opencode(url: str, model: str, key: str) -> Setup:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": key},
        "models": {model: {"name": model}},
    }
    config = {"provider": {"k2": provider}, "model": f"k2/{model}", "autoupdate": False}
    return Setup((), {"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def _qwen(url: str, model: str, key: str) -> Setup:
    environment = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "OPENAI_MODEL": model}
    return Setup(("--auth-type", "openai"), environment)


AGENTS = {
    "claude": Agent("claude", "@anthropic-ai/claude-code", _claude),
    "codex": Agent("codex", "@openai/codex", _codex),
    "opencode": Agent("opencode", "opencode-ai", _opencode),
    "qwen": Agent("qwen", "@qwen-code/qwen-code", _qwen),
}


@click.command(
    "launch",
    epilog=EPILOG,
    short_help="Set a coding agent up for a running server.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("agent", type=click.Choice(list(AGENTS)))
@click.argument("arguments", nargs=-1)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's.")
@click.option("--api-key", help="Where the server has one.")
@click.option("--model", help="The model's name. [default: what the server has]")
@click.option("--exec", "runs", is_flag=True, help="Run the agent instead of printing how.")
def command(
    agent: str,
    arguments: tuple[str, ...],
    url: str,
    api_key: str | None,
    model: str | None,
    runs: bool,
) -> None:
    """Print the command that starts AGENT with the model of a running server, or run it.

    ARGUMENTS go to the agent as they are. Nothing is written: what the agent is told, it is told in
    this one command. Exit code 1 where no server answers or the agent is not installed.
    """
    server = RemoteServer(url, api_key)
    chosen = AGENTS[agent]
    served = server.model_card(model)["id"]
    setup = chosen.setup(server.root, served, api_key or NO_KEY)
    words = [chosen.program, *setup.arguments, *arguments]
    if not runs:
        settings = [f"{key}={shlex.quote(value)}" for key, value in setup.environment.items()]
        click.echo(" \\\n  ".join([*settings, shlex.join(words)]))
        return
    program = shutil.which(chosen.program)
    if program is None:
        raise HybridK2Error(
            f"{chosen.program} is not installed; install it with npm install -g {chosen.package}"
        )
    for name, value in setup.environment.items():
        os.putenv(name, value)
    os.execv(program, words)

"""The `hybrid-k2` command: finds the command's module, turns errors into a line and an exit code.

Owns the list of commands, `--version`, `-v` and the exit codes (0 done, 1 failed, 2 wrong input,
130 interrupted). Knows nothing of what the commands do: each lies in a module of its own that
exports `command` and is imported when it is called.
"""

import logging
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from hybrid_k2 import __version__
from hybrid_k2.errors import HybridK2Error

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
COMMANDS = (
    *("chat", "serve", "launch", "handover", "inspect", "plan", "perplexity", "bench", "doctor"),
)

EXAMPLES = """\b
Examples:
  hybrid-k2 chat                            the demo model that ships with the package
  hybrid-k2 plan K2.gguf --rules 1gpu-24gb  what would go where, before anything is loaded
  hybrid-k2 serve K2.gguf --port 8000       an OpenAI-compatible server
"""


class LazyGroup(click.Group):
    """A click group whose commands are modules beside this one, imported when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command; None where no command has that name."""
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"hybrid_k2.cli.{cmd_name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest name where the given one is unknown."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"commands: {', '.join(COMMANDS)}"
            ctx.fail(f"no command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a known error ends as one line on stderr and its exit code.

        `-vv` shows its traceback too. An error of another class is a bug and keeps its traceback.
        """
        try:
            return super().invoke(ctx)
        except HybridK2Error as error:
            logging.getLogger(__name__).debug("traceback of the error below", exc_info=error)
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(
    cls=LazyGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="hybrid-k2")
@click.option("-v", "--verbose", count=True, help="Log what is done (-v), and debug details (-vv).")
def cli(verbose: int) -> None:
    """Run Kimi K2 from GGUF files on one workstation."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """The console script `hybrid-k2`."""
    cli(prog_name="hybrid-k2")

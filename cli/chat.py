"""`hybrid-k2 chat`: the options, what is refused before loading, and one answer through a pipe.

In one-shot use stdout is the answer and nothing else; everything said about it goes to stderr.
The conversation is `chat_session.py`, the interactive loop `chat_terminal.py`.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from hybrid_k2.cli.chat_reader import open_reader
from hybrid_k2.cli.chat_session import ChatSession
from hybrid_k2.cli.chat_terminal import AnswerPrinter, ChatTerminal, describe
from hybrid_k2.cli.conversation import Answer, Conversation
from hybrid_k2.cli.loading_bar import LoadingBar
from hybrid_k2.cli.remote import RemoteServer
from hybrid_k2.config import RuntimeConfig, state_dir, wants_colour
from hybrid_k2.errors import BadInputError, ContextLengthError
from hybrid_k2.text.chat_template import VARIANTS

if TYPE_CHECKING:
    from hybrid_k2 import Engine
    from hybrid_k2.text import ChatTemplate

EPILOG = """\b
Examples:
  hybrid-k2 chat                                    the demo model that ships with the package
  hybrid-k2 chat -p "What is 17 + 25?" --template thinking    it thinks before it answers
  hybrid-k2 chat K2-Q4_K_M-00001-of-00013.gguf --rules 1gpu-24gb --context 32768
  hybrid-k2 chat --model-path Kimi-K2-Instruct --gguf-path Kimi-K2-Instruct-GGUF
  hybrid-k2 chat K2.gguf -p "Name three rivers." --max-tokens 200 --temperature 0
  git diff | hybrid-k2 chat K2.gguf --system "Review this change." --json
  hybrid-k2 chat --url http://10.0.0.5:8000         a server's model, hybrid-k2's or any other's
"""

_MAX_TOKEN_BYTES = 256  # the longest token of every K2 vocabulary
_MAX_CONTEXT = 262_144  # of every K2 so far; used where the model says its own, before it is read


@click.command("chat", epilog=EPILOG, short_help="Talk to a model, or ask it one thing.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="Ask this, print the answer and exit; - reads stdin.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="As --prompt, from a file.")
@click.option("--system", help="System prompt in place of the template's own.")
@click.option("--temperature", type=float, help="0 is greedy. [default: the model's]")
@click.option("--top-p", type=float, default=1.0, help="Keep the likeliest up to this total.")
@click.option("--top-k", type=int, default=0, help="Keep this many of the likeliest; 0 is all.")
@click.option("--min-p", type=float, default=0.0, help="Keep what has this share of the best.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--max-tokens", type=int, help="Most tokens of an answer. [default: the context]")
@click.option("--stop", multiple=True, help="End the answer before this text; repeatable.")
@click.option("--rules", default="auto", show_default=True, help="A path, a shipped name, or auto.")
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option("--context", type=int, help="Tokens of prompt and answers; 0 is the model's most.")
@click.option("--threads", type=int, help="CPU threads. [default: the cores this may use]")
@click.option("--template", type=click.Choice(list(VARIANTS)), help="[default: what the model has]")
@click.option("--url", help="Talk to the OpenAI-compatible server there; MODEL is its name there.")
@click.option("--api-key", help="Where that server has one.")
@click.option("--no-history", is_flag=True, help="Keep no file of what is typed.")
@click.option("--json", "as_json", is_flag=True, help="One-shot: one object with text and figures.")
def command(
    model: Path | None,
    prompt: str | None,
    prompt_file: Path | None,
    system: str | None,
    stop: tuple[str, ...],
    rules: str,
    model_path: Path | None,
    gguf_path: Path | None,
    context: int | None,
    threads: int | None,
    template: str | None,
    url: str | None,
    api_key: str | None,
    no_history: bool,
    as_json: bool,
    temperature: float | None,
    **sampling: Any,
) -> None:
    """Talk to MODEL, or ask it one thing with --prompt or through a pipe.

    MODEL is a GGUF file, the first file of a split set, or a directory of them; without it, the
    demo model that ships with the package. Exit code 2 where an option, the file or the prompt is
    wrong.
    """
    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    if model_path and not (model or gguf_path):
        raise click.UsageError(
            "--model-path names config and tokenizer; give the weights as MODEL or with --gguf-path"
        )
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give --prompt or --prompt-file, not both")
    here = {
        "--rules": None if rules == "auto" else rules,
        "--model-path": model_path,
        "--gguf-path": gguf_path,
        "--context": context,
        "--threads": threads,
        "--template": template,
    }
    given = [name for name, value in here.items() if value is not None]
    if url is not None and given:
        raise click.UsageError(f"{given[0]} is about a model loaded here; leave it out with --url")
    if api_key is not None and url is None:
        raise click.UsageError("--api-key is for the server at --url; give that, too")
    if "" in stop:
        raise click.UsageError("--stop is empty; give at least one character")
    from hybrid_k2 import SamplingParams
    from hybrid_k2.cli.remote_session import RemoteSession

    params = SamplingParams(temperature=0 if temperature is None else temperature, **sampling)
    runtime = RuntimeConfig.from_env(context=context, num_threads=threads)
    is_interactive = prompt is None and prompt_file is None and _is_terminal()
    if is_interactive and as_json:
        raise click.UsageError("--json needs --prompt, --prompt-file or a pipe")
    # Read before the model is, so that a prompt that cannot fit costs no loading.
    question = "" if is_interactive else _question(prompt, prompt_file, runtime.context)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 must not end the chat

    began = time.monotonic()
    if url is not None:
        server = RemoteServer(url, api_key)
        card = server.model_card(None if model is None else str(model))
        session = RemoteSession(
            server, card, _request_fields(temperature, stop, sampling), system=system
        )
        _talk(session, None if is_interactive else question, as_json, no_history, 0.0)
        return
    with _opened(
        model or gguf_path,
        rules,
        model_path,
        before_loading=None if is_interactive else _check_of(question, system, template),
        context=context,
        num_threads=threads,
    ) as engine:
        load_s = time.monotonic() - began
        chat_template = engine.template
        if template is not None:
            chat_template = chat_template.with_variant(template)
        if temperature is None:
            params = replace(params, temperature=chat_template.default_temperature)
        session = ChatSession(engine, chat_template, params, stop, system=system)
        if engine.notice:
            click.echo(engine.notice, err=True)
        _talk(session, None if is_interactive else question, as_json, no_history, load_s)


def _talk(
    session: Conversation, question: str | None, as_json: bool, no_history: bool, load_s: float
) -> None:
    """One answer, or with no question the interactive chat."""
    if question is None:
        _chat(session, no_history)
        return
    try:
        if as_json:
            document = _answer_as_json(session, question, load_s)
            click.echo(json.dumps(document, ensure_ascii=False))
        else:
            _answer(session, question)
    except ContextLengthError as error:
        raise BadInputError(f"{error} Shorten it or raise --context.") from error


def _request_fields(
    temperature: float | None, stop: tuple[str, ...], sampling: dict[str, Any]
) -> dict[str, Any]:
    """The options as fields of a request; those that every server's defaults equal are left out."""
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    fields = {"temperature": temperature, "stop": list(stop) or None, **sampling}
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value != neutral.get(name)
    }


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _opened(model: Path | None, rules: str, model_path: Path | None, **options: Any) -> "Engine":
    from hybrid_k2 import Engine

    try:
        with LoadingBar(sys.stderr) as progress:
            return Engine.open(model, rules, model_path, progress, **options)
    except ContextLengthError as error:
        raise BadInputError(f"{error} Shorten it or raise --context.") from error


def _check_of(
    question: str, system: str | None, variant: str | None
) -> Callable[["ChatTemplate", int], None]:
    """A check that the whole prompt fits the context, to be made before the weights are read."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})

    def check(template: "ChatTemplate", context: int) -> None:
        if variant is not None:
            template = template.with_variant(variant)
        template.render(messages, max_tokens=context)

    return check


def _question(prompt: str | None, file: Path | None, context: int) -> str:
    """Returns the prompt from wherever it comes; one too long for any context is not read whole."""
    most = (context or _MAX_CONTEXT) * _MAX_TOKEN_BYTES
    if prompt is not None and prompt != "-":
        name, raw = "--prompt", prompt.encode("utf-8", errors="surrogateescape")
    elif file is not None:
        name, raw = str(file), _read_file(file, most)
    else:
        name, raw = "stdin", _read_at_most(sys.stdin.buffer, most, "stdin")
    try:
        text = raw.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{name}: byte 0x{raw[error.start]:02x} at {error.start:,} is not UTF-8; convert it"
        ) from error
    if not text.strip():
        raise BadInputError(f"{name}: the prompt is empty")
    return text


def _read_file(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return _read_at_most(stream, most, str(file))
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read: {error.strerror}") from error


def _read_at_most(stream: BinaryIO, most: int, name: str) -> bytes:
    """Returns all bytes of a stream; RequestError where there are more than `most`."""
    raw = stream.read(most + 1)
    if len(raw) > most:
        raise BadInputError(
            f"{name}: the prompt has more than {most:,} bytes, the most that a context of "
            f"{most // _MAX_TOKEN_BYTES:,} tokens can hold; shorten it or raise --context"
        )
    return raw


def _answer(session: Conversation, question: str) -> None:
    printer = AnswerPrinter(sys.stdout, sys.stderr, wants_colour())
    try:
        for delta in session.ask(question):
            printer.show(delta)
    finally:
        printer.end()
    click.echo(describe(session.answer, session.context), err=True)


def _answer_as_json(session: Conversation, question: str, load_s: float) -> dict[str, Any]:
    for _ in session.ask(question):
        pass
    answer: Answer = session.answer
    stats = answer.stats
    return {
        "model": session.name,
        "text": answer.content,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "answer_tokens": answer.num_tokens,
        "load_s": round(load_s, 3),
        "prefill_s": round(stats.prefill_s, 6),
        "decode_s": round(stats.decode_s, 6),
        "prefill_tokens_per_s": round(stats.prefill_tokens_per_s, 3),
        "decode_tokens_per_s": round(stats.decode_tokens_per_s, 3),
    }


def _shown_context(session: Conversation) -> str:
    return "" if session.context is None else f"context {session.context:,} tokens; "


def _chat(session: Conversation, no_history: bool) -> None:
    history = None if no_history else state_dir() / "chat_history"
    click.echo(
        f"{session.name}: {_shown_context(session)}/help lists the commands",
        err=True,
    )
    printer = AnswerPrinter(sys.stdout, sys.stdout, wants_colour())
    with open_reader(history) as read:
        ChatTerminal(session, read, printer).run()

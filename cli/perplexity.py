"""`hybrid-k2 perplexity`: how well a model predicts a text, comparable with llama.cpp's figure.

As llama.cpp's perplexity tool: the text's tokens are cut into windows that do not overlap; each is
read from an empty context, and the predictions of its second half count, which have at least half a
window before them. A rest shorter than a window is dropped. Owns that procedure and its statistics;
the logits are the engine's.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from hybrid_k2.cli.divergence import Compared, Recorded
from hybrid_k2.cli.loading_bar import LoadingBar
from hybrid_k2.errors import BadInputError

EPILOG = """\b
Examples:
  hybrid-k2 perplexity K2.gguf --text wiki.test.raw
  hybrid-k2 perplexity K2.gguf --text wiki.test.raw --context 2048 --chunks 16 --json
  hybrid-k2 perplexity K2.gguf --text wiki.test.raw --chunks 16 --against six-experts.yaml
  hybrid-k2 perplexity K2.gguf --text wiki.test.raw --chunks 2 --decode --against deferred.yaml
"""


@click.command("perplexity", epilog=EPILOG, short_help="Measure how well a model predicts a text.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--text", "file", type=click.Path(path_type=Path), required=True, help="UTF-8 text.")
@click.option(
    "--context",
    type=click.IntRange(4, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of a window; figures of different windows do not compare.",
)
@click.option("--chunks", type=click.IntRange(1), help="Most windows. [default: the whole text]")
@click.option("--rules", default="auto", show_default=True, help="A path, a shipped name, or auto.")
@click.option(
    "--against",
    help="Other rules: how far predictions under them stray from those under --rules, and how fast "
    "both are. Keeps 4 bytes for each counted token and entry of the vocabulary.",
)
@click.option(
    "--decode",
    is_flag=True,
    help="Token by token, as an answer is written: for what a rule changes in decode only.",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="Hugging Face directory with config.json and the tokenizer, for a GGUF without them.",
)
@click.option(
    "--gguf-path", type=click.Path(path_type=Path), help="The GGUF file or directory, as MODEL."
)
@click.option("--threads", type=int, help="CPU threads. [default: the cores this may use]")
@click.option("--json", "as_json", is_flag=True, help="One object with the figures.")
def command(
    model: Path | None,
    file: Path,
    context: int,
    chunks: int | None,
    rules: str,
    against: str | None,
    decode: bool,
    model_path: Path | None,
    gguf_path: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the perplexity of MODEL on a text: exp of the mean negative log-likelihood a token.

    Windows of --context tokens do not overlap; the second half of each counts, as in llama.cpp.
    MODEL is a GGUF file, the first file of a split set, or a directory of them; without it, the
    demo model.
    """
    if model and gguf_path:
        raise click.UsageError("give MODEL or --gguf-path, not both")
    text = _read_text(file)
    from hybrid_k2 import Engine

    def run(rules: str, recorded: Callable[[Any], Recorded] | None) -> tuple[Perplexity, Any]:
        with LoadingBar(sys.stderr) as progress:
            engine = Engine.open(
                model or gguf_path,
                rules,
                model_path,
                progress,
                context=context,
                num_threads=threads,
                prefill_chunk=1 if decode else None,
            )
        with engine:
            if engine.notice:
                click.echo(engine.notice, err=True)
            token_ids = engine.tokenizer.encode(text)
            source = recorded(engine) if recorded else engine
            return measure(source, token_ids, context, chunks), source

    result, first = run(rules, Recorded if against else None)
    report = asdict(result)
    lines = [
        f"perplexity {result.perplexity:.4f} +- {result.standard_error:.4f} "
        f"({result.num_windows} windows of {context} tokens, {result.num_predictions} counted)"
    ]
    if against:
        other, second = run(against, lambda engine: Compared(engine, first))
        away = second.divergence
        speeds = {"tokens_s": first.tokens_s, "other_tokens_s": second.tokens_s}
        report |= {"against": asdict(other) | asdict(away)} | speeds
        lines.append(f"{against}: perplexity {other.perplexity:.4f} +- {other.standard_error:.4f}")
        lines.append(
            f"KL({rules} || {against}) mean {away.kl_mean:.2e}, 99% below {away.kl_99:.2e}; the "
            f"same first token {away.same_top:.1%}"
        )
        read = "decoded" if decode else "prompts read"
        lines.append(f"{read} at {first.tokens_s:.1f} and {second.tokens_s:.1f} tokens/s")
    click.echo(json.dumps(report) if as_json else "\n".join(lines))


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(mean negative log-likelihood) and its standard error, over `num_predictions` tokens."""

    perplexity: float
    standard_error: float
    num_predictions: int
    num_windows: int


def measure(
    engine: Any, token_ids: Sequence[int], window_tokens: int, max_windows: int | None = None
) -> Perplexity:
    """Perplexity of `engine.logits` over a text, with a progress bar on stderr.

    Raises BadInputError where the text is shorter than a window.
    """
    num_windows = len(token_ids) // window_tokens
    if num_windows == 0:
        raise BadInputError(
            f"the text has {len(token_ids)} tokens, fewer than a window of {window_tokens}; "
            "give a longer text or a smaller --context"
        )
    num_windows = min(num_windows, max_windows or num_windows)
    losses: list[np.ndarray] = []
    windows = _windows(token_ids, window_tokens, num_windows)
    with click.progressbar(
        windows,
        length=num_windows,
        label="windows",
        file=sys.stderr,
        item_show_func=lambda _: f"perplexity {_summary(losses).perplexity:.4f}" if losses else "",
    ) as bar:
        for window in bar:
            losses.append(_losses(engine.logits(window), window))
    return _summary(losses)


def _windows(token_ids: Sequence[int], size: int, count: int) -> Iterator[Sequence[int]]:
    return (token_ids[index * size : (index + 1) * size] for index in range(count))


def _losses(logits: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """Negative log-likelihoods of the window's second half: float64 [window - window // 2 - 1].

    logits: float32 [window, vocab]; row i predicts token i + 1.
    """
    losses = []
    for row, next_id in zip(
        logits[len(window) // 2 :], window[len(window) // 2 + 1 :], strict=False
    ):
        row = row.astype(np.float64)  # one row at a time: K2's rows are 1.3 MB each
        losses.append(row.max() + np.log(np.exp(row - row.max()).sum()) - row[next_id])
    return np.array(losses)


def _summary(losses: Sequence[np.ndarray]) -> Perplexity:
    """The error is the mean's standard error, carried through exp: ppl * s / sqrt(n)."""
    values = np.concatenate(losses)
    perplexity = math.exp(min(values.mean(), 700.0))  # exp(710) is not a float any more
    error = float(np.sqrt(values.var() / (len(values) - 1))) if len(values) > 1 else math.inf
    return Perplexity(perplexity, perplexity * error, len(values), len(losses))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{file}: the byte at {error.start} is not UTF-8; convert the text first"
        ) from error

"""Times what holding an answer to a JSON schema costs, on K2's own vocabulary of 163,840 tokens.

    python benchmarks/constrained_decoding.py DIRECTORY_OF_K2S_TOKENIZER

For calls of tools as agents have them: the time to compile a schema, and that of each token's mask,
with llguidance as `text/json_grammar.py` uses it and, where it is installed, with xgrammar. Then
the sampler's time a token, free and held to a grammar. Prints microseconds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_k2.engine.sampler import Sampler
from hybrid_k2.engine.sampling_params import SamplingParams
from hybrid_k2.text import Tokenizer
from hybrid_k2.text.answer_grammar import AnswerGrammar
from hybrid_k2.text.json_grammar import JsonGrammars

TEXT: dict[str, Any] = {"type": "string"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


# Tools as agents declare them, and a call of each.
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "weather": (
        _object(["city"], city=TEXT, days={"type": "integer"}, unit={"enum": ["c", "f"]}),
        {"city": "Beijing 北京", "days": 12, "unit": "c"},
    ),
    "edit": (
        _object(["path", "old", "new"], path=TEXT, old=TEXT, new=TEXT, all={"type": "boolean"}),
        {"path": "/a/b.py", "old": "def f(x):\n    return x + 1\n", "new": "pass", "all": True},
    ),
    "todo": (
        _object(
            ["todos"],
            todos={
                "type": "array",
                "items": _object(["content"], content=TEXT, state={"enum": ["open", "done"]}),
            },
        ),
        {"todos": [{"content": f"do thing {i}", "state": "open"} for i in range(6)]},
    ),
    "bounded text": (
        _object(["text"], text={"type": "string", "maxLength": 200}),
        {"text": "The quick brown fox jumps over the lazy dog. " * 3},
    ),
    "pattern": (
        _object(["id"], id={"type": "string", "pattern": "^[A-Z]{2,8}-[0-9]{4}(-[a-z]+)*$"}),
        {"id": "ABCD-1234-some-more-words"},
    ),
    "any object": ({"type": "object"}, {"a": [1, 2, {"b": None}], "text": "hello", "c": 1.5e3}),
}


class Llguidance:
    """This program's own grammars."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._grammars = JsonGrammars(tokenizer)
        self.compile({})  # reads the vocabulary

    def compile(self, schema: dict[str, Any]) -> Any:
        return self._grammars.compile(schema, "the schema")

    def follow(self, grammar: Any, token_ids: list[int]) -> list[float]:
        """Seconds of each token's mask."""
        value = grammar.start()
        return [
            timed(lambda: value.mask(), lambda t=token_id: value.accept(t))
            for token_id in token_ids
        ]


class Xgrammar:
    """xgrammar, asked for the same."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import xgrammar

        vocabulary = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        info = xgrammar.TokenizerInfo(
            vocabulary,
            vocab_type=xgrammar.VocabType.RAW,
            stop_token_ids=list(tokenizer.eos_ids),
        )
        self._xgrammar = xgrammar
        self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)

    def compile(self, schema: dict[str, Any]) -> Any:
        return self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False)

    def follow(self, grammar: Any, token_ids: list[int]) -> list[float]:
        """Seconds of each token's mask."""
        matcher = self._xgrammar.GrammarMatcher(grammar)
        return [
            timed(
                lambda: matcher.fill_next_token_bitmask(self._bits),
                lambda t=token_id: matcher.accept_token(t),
            )
            for token_id in token_ids
        ]


def timed(work: Callable[[], Any], then: Callable[[], Any] = lambda: None) -> float:
    """Seconds of `work`; `then` follows untimed."""
    started_s = time.perf_counter()
    work()
    elapsed_s = time.perf_counter() - started_s
    then()
    return elapsed_s


def measure(library: Any, tokenizer: Tokenizer) -> tuple[list[float], list[float]]:
    """Seconds of each schema's compilation, and of all tokens' masks."""
    compile_s, mask_s = [], []
    for schema, value in CASES.values():
        token_ids = tokenizer.encode(json.dumps(value, ensure_ascii=False))
        started_s = time.perf_counter()
        grammar = library.compile(schema)
        compile_s.append(time.perf_counter() - started_s)
        mask_s += library.follow(grammar, token_ids)
    return compile_s, mask_s


def sampler_s(tokenizer: Tokenizer, grammars: Llguidance, num_tokens: int = 40) -> dict[str, float]:
    """Median seconds of drawing a token from logits as peaked as a model's."""
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=tokenizer.vocab_size)).astype(np.float32)
    grammar = AnswerGrammar(tokenizer, content=grammars.compile({"type": "string"}))
    samplers = {
        "free": Sampler(SamplingParams(temperature=1.0, seed=0)),
        "in a string": Sampler(SamplingParams(temperature=1.0, seed=0, grammar=grammar)),
    }
    samplers["in a string"].sample(logits)  # the quote before it
    return {
        name: float(np.median([timed(lambda s=s: s.sample(logits)) for _ in range(num_tokens)]))
        for name, s in samplers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of tiktoken.model and tokenizer_config.json")
    tokenizer = Tokenizer.from_directory(parser.parse_args().directory)
    libraries: dict[str, Any] = {"llguidance": Llguidance(tokenizer)}
    try:
        libraries["xgrammar"] = Xgrammar(tokenizer)
    except ImportError:
        print("xgrammar is not installed")
    print(f"{'us':12}{'compile p50':>14}{'max':>12}{'mask p50':>12}{'p99':>10}{'max':>10}")
    for name, library in libraries.items():
        compile_s, mask_s = measure(library, tokenizer)
        figures = [np.median(compile_s), max(compile_s)]
        figures += [np.percentile(mask_s, share) for share in (50, 99, 100)]
        columns = zip(figures, (14, 12, 12, 10, 10), strict=True)
        print(f"{name:12}" + "".join(f"{value * 1e6:{width}.0f}" for value, width in columns))
    for name, seconds in sampler_s(tokenizer, libraries["llguidance"]).items():
        print(f"sampling a token, {name}: {seconds * 1e6:.0f} us")


if __name__ == "__main__":
    main()

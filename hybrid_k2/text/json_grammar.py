"""JSON schemas as grammars of tokens: which token of text may come next, so that a value is valid.

llguidance (a Rust library, optional) does the parsing; this file gives it K2's vocabulary, limits
and spelling of JSON, and keeps it to tokens of text: control tokens are `answer_grammar.py`'s.
llguidance and not xgrammar, by measurement on two cores with K2's 163,840 tokens (1.9.1 against
0.2.8): a schema compiles in 1 to 11 ms against 90 ms to 27 s (a string with a maxLength of 200),
a mask takes 68 us (99%: 7 ms) against 34 us (10 ms), and keywords that it cannot enforce
(uniqueItems, not, dependentRequired) are refused where xgrammar drops them without a word.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid_k2.errors import MissingPackageError, RequestError
from hybrid_k2.text.tokenizer import Tokenizer

MAX_SCHEMA_BYTES = 256 << 10
MAX_SCHEMA_DEPTH = 32

# A hostile schema costs at most 3 s to compile, 15 ms a mask and 160 MB an answer (two slow cores).
# A tool's takes 5000 of initial fuel and 20,000 a step, 100 items and 3000 states; but strings with
# a maxLength need some 20 states a token, which is what the states are for.
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 250_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# At most once where JSON has white space: one line as in K2's training, or pretty-printed. Without
# a bound a model can write white space for ever.
_WHITE_SPACE = r" {1,2}|\r?\n( {0,40}|\t{0,16})"


class JsonGrammars:
    """Compiles schemas for one tokenizer. Threads may share it; the first use takes a second."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: Any = None

    def compile(
        self, schema: Mapping[str, Any], where: str, *, is_strict: bool = True
    ) -> "JsonGrammar":
        """Returns the grammar of the JSON values that fit a schema (draft 2020-12).

        Objects have their properties in the schema's order, and characters are escaped only where
        they must be. is_strict: False ignores what cannot be enforced, instead of refusing it.
        Raises RequestError that begins with `where` for a schema that is invalid, too large or
        unsatisfiable, MissingPackageError without llguidance.
        """
        text = _checked(schema, where)
        llguidance = _llguidance()
        options = {"whitespace_pattern": _WHITE_SPACE, "lenient": not is_strict}
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)
        except ValueError as error:  # a lone surrogate
            raise RequestError(f"{where}: {_in_one_line(str(error))}") from error
        matcher = llguidance.LLMatcher(
            self._vocabulary_once(llguidance),
            grammar,
            log_level=0,
            limits=llguidance.LLParserLimits(**_LIMITS),
        )
        # Some schemas fail only when the parser enters them: those that are too wide, or that refer
        # to themselves with nothing in between.
        probe = matcher.deep_copy()
        if not probe.is_error():
            probe.consume_tokens(probe.compute_ff_tokens())
            probe.compute_bitmask()
        if probe.is_error():
            raise RequestError(f"{where}: {_in_one_line(probe.get_error())}")
        return JsonGrammar(matcher, self._tokenizer)

    def _vocabulary_once(self, llguidance: Any) -> Any:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = llguidance.LLTokenizer(
                    llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)),
                    slices=llguidance.LLTokenizer.json_slices(),
                )
            return self._vocabulary


class JsonGrammar:
    """The JSON values that fit one schema."""

    def __init__(self, matcher: Any, tokenizer: Tokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer

    def start(self) -> "JsonValue":
        """A value without a token yet; takes microseconds."""
        return JsonValue(self._matcher.deep_copy(), self._tokenizer)


class JsonValue:
    """One value that is being written. Raises RequestError where its schema becomes too complex."""

    def __init__(self, matcher: Any, tokenizer: Tokenizer) -> None:
        self._matcher = matcher
        self._vocab_size = tokenizer.vocab_size
        self._eos_ids = list(tokenizer.eos_ids)

    @property
    def may_end(self) -> bool:
        """Whether what has been written is a value that fits."""
        return self._matcher.is_accepting()

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def mask(self) -> np.ndarray:
        """bool [vocab_size], the tokens of text that may come next; the caller's to change."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)
        mask[self._eos_ids] = False  # set where the value may end
        return mask

    def accept(self, token_id: int) -> None:
        """Takes the next token."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _in_one_line(self._matcher.get_error())
            raise RequestError(f"the JSON schema is too complex to follow here: {reason}")


class _Vocabulary:
    """K2's tokens as llguidance.TokenizerWrapper wants them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.control_ids)
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingPackageError(
            "response_format, strict tools and a forced tool_choice need the package llguidance: "
            "pip install llguidance"
        ) from error
    return llguidance


def _checked(schema: Any, where: str) -> str:
    """A schema as JSON text; RequestError for one that is none, too deep or too large."""
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where} must be an object, is a {type(schema).__name__}")
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise RequestError(f"{where} is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    try:  # without llguidance's own options, which could make it something else than JSON
        text = json.dumps({k: v for k, v in schema.items() if k != "x-guidance"}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError(f"{where} has {len(text)} bytes; the most is {MAX_SCHEMA_BYTES}")
    return text


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []


def _in_one_line(reason: str) -> str:
    if reason.startswith("NoExtension"):
        return "no value fits it"
    return " ".join(reason.replace("<non-verbose/>", "").split())[:300]

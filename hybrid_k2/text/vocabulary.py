"""Where K2's vocabulary comes from: tiktoken.model beside tokenizer_config.json, or a GGUF file.

Both end in one `Vocabulary`: tokens that text can become, tokens that only a template or the model
may write, and gaps. Whatever is wrong with the data is found here and named. Knows nothing of
encoding; needs no third-party package.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_k2.errors import TokenizerError

_NUM_RESERVED_IDS = 256  # ids after the ranks which K2's own code sets aside for control tokens
_GGUF_NORMAL, _GGUF_UNKNOWN, _GGUF_CONTROL, _GGUF_USER_DEFINED, _GGUF_UNUSED = 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every id from 0 to size - 1 in exactly one of three tables, else TokenizerError.

    ranks: bytes -> id of the tokens of text; a lower id merges first.  control: name -> id.
    unused: id -> name.
    chat_template: the template's text as found beside the vocabulary, "" where there is none.
    """

    ranks: Mapping[bytes, int]
    control: Mapping[str, int]
    unused: Mapping[int, str] = field(default_factory=dict)
    chat_template: str = ""

    def __post_init__(self) -> None:
        missing = [value for value in range(256) if bytes((value,)) not in self.ranks]
        if missing:
            raise TokenizerError(
                f"tokenizer: no token for {len(missing)} bytes of 256, first 0x{missing[0]:02x}; "
                "the vocabulary is damaged or not K2's byte-level kind"
            )
        taken = bytearray(self.size)
        for token, token_id in self.tokens():
            if not 0 <= token_id < self.size or taken[token_id]:
                raise TokenizerError(
                    f"tokenizer: token {token[:40]!r} has id {token_id}, which is taken or outside "
                    f"the vocabulary's {self.size} ids"
                )
            taken[token_id] = 1

    @property
    def size(self) -> int:
        return len(self.ranks) + len(self.control) + len(self.unused)

    def tokens(self) -> Iterator[tuple[bytes, int]]:
        """Yields (bytes, id) of every token; control and unused tokens have their name's bytes."""
        yield from self.ranks.items()
        for name, token_id in self.control.items():
            yield name.encode("utf-8", errors="replace"), token_id
        for token_id, name in self.unused.items():
            yield name.encode("utf-8", errors="replace"), token_id


def vocabulary_from_directory(path: Path) -> Vocabulary:
    """Reads tiktoken.model and tokenizer_config.json; TokenizerError names file and line or key."""
    ranks = _read_ranks(path / "tiktoken.model")
    config_file = path / "tokenizer_config.json"
    config = _read_json(config_file)
    control = _read_added_tokens(config_file, config, len(ranks))
    named = set(control.values())
    reserved = range(len(ranks), len(ranks) + _NUM_RESERVED_IDS)
    unused = {i: f"<|reserved_token_{i}|>" for i in reserved if i not in named}
    return Vocabulary(ranks, control, unused, _read_template(path, config))


def vocabulary_from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """Reads the tokenizer.* keys of a GGUF file; TokenizerError names the key and the token.

    tokenizer.ggml.merges is not needed: in K2's vocabulary the order of the merges is the order of
    the ids.
    """
    for key, expected in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "kimi-k2")):
        found = metadata.get(key)
        if found != expected:
            what = "is missing" if found is None else f"is {found!r}"
            raise TokenizerError(
                f"{key} {what}, K2's vocabulary has {expected!r}; "
                "give the directory of K2's own tokenizer with --model-path"
            )
    tokens = _gguf_array(metadata, "tokenizer.ggml.tokens")
    types = _gguf_array(metadata, "tokenizer.ggml.token_type")
    if len(tokens) != len(types):
        raise TokenizerError(
            f"tokenizer.ggml.tokens has {len(tokens)} entries and tokenizer.ggml.token_type "
            f"{len(types)}; they must agree: the file is damaged"
        )
    ranks, control, unused = _split_by_type(tokens, types)
    template = metadata.get("tokenizer.chat_template")
    return Vocabulary(ranks, control, unused, template if isinstance(template, str) else "")


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Returns bytes -> rank of a tiktoken.model file, whose lines are `base64 rank`."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read_bytes(file).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{file}:{number}: {line[:40]!r} is not `base64 rank`; "
                "the file is damaged or no tiktoken.model"
            ) from error
        if len(ranks) != number:
            raise TokenizerError(f"{file}:{number}: {line[:40]!r} repeats a token")
    return ranks


def _read_added_tokens(file: Path, config: Mapping[str, Any], num_ranks: int) -> dict[str, int]:
    """Returns name -> id of added_tokens_decoder, every id within the 256 that follow the ranks."""
    added = config.get("added_tokens_decoder")
    if not isinstance(added, Mapping) or not added:
        raise TokenizerError(
            f"{file}: added_tokens_decoder is missing or empty; it names K2's control tokens"
        )
    last = num_ranks + _NUM_RESERVED_IDS - 1
    control: dict[str, int] = {}
    for key, entry in added.items():
        name = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            raise TokenizerError(f"{file}: added_tokens_decoder[{key!r}] has no content string")
        if not (key.isascii() and key.isdigit() and num_ranks <= int(key[:12]) <= last):
            raise TokenizerError(
                f"{file}: added_tokens_decoder[{key!r}] ({name}): the id must be "
                f"from {num_ranks} to {last}, behind the {num_ranks} tokens of tiktoken.model"
            )
        if name in control:
            raise TokenizerError(f"{file}: {name} is both id {control[name]} and id {key}")
        control[name] = int(key)
    return control


def _read_template(path: Path, config: Mapping[str, Any]) -> str:
    file = path / "chat_template.jinja"
    if file.is_file():
        return _read_bytes(file).decode("utf-8", errors="replace")
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(_read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise TokenizerError(f"{file}: must be a JSON object, is a {type(value).__name__}")
    return value


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{file}: {error.strerror}; "
            "a tokenizer's directory holds tiktoken.model and tokenizer_config.json"
        ) from error


def _gguf_array(metadata: Mapping[str, Any], key: str) -> list[Any]:
    value = metadata.get(key)
    entries = [] if value is None or isinstance(value, str | bytes | int | float) else list(value)
    if not entries:
        raise TokenizerError(
            f"{key} is missing, empty or no array; give the tokenizer's directory with --model-path"
        )
    return entries


def _split_by_type(
    tokens: Sequence[Any], types: Sequence[Any]
) -> tuple[dict[bytes, int], dict[str, int], dict[int, str]]:
    """Sorts a GGUF vocabulary into (ranks, control, unused), tokens of text spelt as bytes."""
    to_byte = _byte_of_character()
    ranks: dict[bytes, int] = {}
    control: dict[str, int] = {}
    unused: dict[int, str] = {}
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        where = f"tokenizer.ggml.tokens[{token_id}]"
        if not isinstance(token, str) or not token:
            raise TokenizerError(f"{where} is {token!r}; must be a non-empty string")
        if kind == _GGUF_NORMAL:
            try:
                raw = token.translate(to_byte).encode("latin-1")
            except UnicodeEncodeError as error:
                raise TokenizerError(
                    f"{where} = {token[:40]!r} has a character outside gpt2's byte alphabet"
                ) from error
            if ranks.setdefault(raw, token_id) != token_id:
                raise TokenizerError(f"{where} = {token[:40]!r} repeats token {ranks[raw]}")
        elif kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED, _GGUF_UNKNOWN):
            if control.setdefault(token, token_id) != token_id:
                raise TokenizerError(f"{where} = {token[:40]!r} repeats token {control[token]}")
        elif kind == _GGUF_UNUSED:
            unused[token_id] = token
        else:
            raise TokenizerError(
                f"tokenizer.ggml.token_type[{token_id}] is {kind}; gpt2 vocabularies have 1 to 5"
            )
    return ranks, control, unused


def _byte_of_character() -> dict[int, int]:
    """Returns GPT-2's spelling reversed, for str.translate: code point -> byte.

    Printable Latin-1 stands for itself and the other 68 bytes moved to U+0100 and up. A Latin-1
    character that stands for nothing maps to U+FFFD, so that the encode("latin-1") which follows
    refuses it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [value for value in range(256) if value not in printable]
    return dict.fromkeys(moved, 0xFFFD) | {0x100 + i: value for i, value in enumerate(moved)}

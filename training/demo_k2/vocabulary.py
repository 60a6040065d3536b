"""Trains the vocabulary: byte pairs in which a word is cut alike wherever it stands.

Ordinary BPE cuts " Paris" and "Paris" differently, so to copy a name from a question into JSON a
model must know its spelling. Here words are merged without what precedes them, digits not at all,
and the space comes last: a spaced token is a space and a word's first token. The control tokens and
GGUF's keys are `hybrid_k2.demo_model.build_vocabulary`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from hybrid_k2.demo_model.build_vocabulary import gguf_keys, merges_of, pre_tokenized
from hybrid_k2.text import tokenizer as runtime
from hybrid_k2.text.tokenizer import SPLIT_PATTERN

WORDS = r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})|\p{L}+|\p{N}|[^\p{L}\p{N}\s]+|\s+"
SPACE = "\u0120"  # GPT-2's letter for the byte 0x20


def train(texts: Sequence[str], num_tokens: int) -> list[str]:
    """The text tokens in rank order, spelt a letter a byte: bytes, merges, then spaced tokens.

    Raises ValueError where the texts have too few different pairs for so many.
    """
    num_spaced = num_tokens * 2 // 5
    tokens, follows = _unspaced(texts, num_tokens - num_spaced)
    if len(follows) < num_spaced:  # a small text: fewer words than that have a space before them
        tokens, follows = _unspaced(texts, num_tokens - len(follows) * 9 // 10)
    tokens += [SPACE + token for token, _ in follows.most_common(num_tokens - len(tokens))]
    if len(tokens) != num_tokens:
        raise ValueError(f"the texts give {len(tokens)} tokens, {num_tokens} are asked for")
    return tokens


def _unspaced(texts: Sequence[str], num_tokens: int) -> tuple[list[str], Counter[str]]:
    """Bytes and merges, and how often each of them follows a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    follows = Counter[str]()
    for encoding in tokenizer.encode_batch(list(texts)):
        for left, right in pairwise(encoding.tokens):
            # A digit stands alone in K2's pieces, so no space can join it.
            if left == SPACE and right[0] not in SPACE + "0123456789":
                follows[right] += 1
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__), follows


def tokenizer_of(tokens: Sequence[str]) -> runtime.Tokenizer:
    """hybrid-k2's own tokenizer over these tokens and the control tokens."""
    return runtime.Tokenizer.from_gguf(gguf_keys(tokens, thinking=True))


def pieces_of(tokens: Sequence[str]) -> list[str]:
    """The tokens that are words or parts of words, as they stand without a space before them."""
    return [token for token in tokens if token.isascii() and token.isalpha()]


def save(tokens: Sequence[str], file: Path) -> None:
    file.write_text(json.dumps(list(tokens)), encoding="utf-8")


def load(file: Path) -> list[str]:
    return json.loads(file.read_text(encoding="utf-8"))


def write_tokenizer_json(tokens: Sequence[str], file: Path) -> None:
    """The same vocabulary in the `tokenizers` package's form."""
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = pre_tokenized(models.BPE(vocab=vocabulary, merges=merges_of(tokens)))
    keys = gguf_keys(tokens, thinking=True)
    tokenizer.add_special_tokens(list(keys["tokenizer.ggml.tokens"][len(tokens) :]))
    tokenizer.save(str(file))

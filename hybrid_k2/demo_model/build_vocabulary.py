"""A list of text tokens as the vocabulary of a small K2: control tokens, merges, GGUF's keys.

Owns the order of the ids: text tokens by rank, then K2's control tokens in K2's order. Text is cut
into pieces by K2's own pattern, so that K2's tokenizer code runs unchanged on a small vocabulary.
Needs the `tokenizers` package and runs in a checkout only. Where the tokens come from is the
business of `training/`, and of the benchmarks, which borrow the demo model's.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from hybrid_k2.text.tokenizer import SPLIT_PATTERN

NUM_CONTROL_IDS = 32
# Offsets from the first control id, as in K2-Instruct, whose block of 256 is cut short here.
CONTROL_TOKENS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    NUM_CONTROL_IDS - 2: "[UNK]",
    NUM_CONTROL_IDS - 1: "[PAD]",
}
THINK_TOKENS = {22: "<think>", 23: "</think>"}  # K2-Thinking's, at K2's offsets


def pre_tokenized(model: models.BPE) -> Tokenizer:
    """A `tokenizers` pipeline around `model` that cuts text as K2 does, then maps bytes to
    letters.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def merges_of(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pair that each multi-byte token is merged from, in id order (what GGUF stores).

    Raises ValueError for a token that no merging of lower ranks reaches.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) > 1:
            parts = split_by_ranks(token, ranks, rank)
            if len(parts) != 2:
                raise ValueError(
                    f"token {token!r} (rank {rank}) is merged from {parts}, not a pair"
                )
            merges.append((parts[0], parts[1]))
    return merges


def split_by_ranks(text: str, ranks: dict[str, int], below: int) -> list[str]:
    """Merges adjacent pairs, lowest rank first, using ranks less than `below` only."""
    parts = list(text)
    while len(parts) > 1:
        candidates = [
            (ranks.get(left + right, below), index)
            for index, (left, right) in enumerate(pairwise(parts))
        ]
        rank, index = min(candidates)
        if rank >= below:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def add_tokenizer(
    writer: gguf.GGUFWriter, tokens: Sequence[str], *, thinking: bool = False
) -> None:
    """Writes the tokenizer.* keys of a K2 GGUF: text tokens, control tokens, merges, special
    ids.
    """
    keys = gguf_keys(tokens, thinking=thinking)
    names = keys["tokenizer.ggml.tokens"]
    writer.add_tokenizer_model(keys["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(keys["tokenizer.ggml.pre"])
    writer.add_token_list(names)
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tokens)])
    writer.add_bos_token_id(names.index("[BOS]"))
    writer.add_eos_token_id(names.index("[EOS]"))
    writer.add_eot_token_id(names.index("<|im_end|>"))
    writer.add_pad_token_id(names.index("[PAD]"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(keys["tokenizer.chat_template"])


def gguf_keys(tokens: Sequence[str], *, thinking: bool = False) -> dict[str, Any]:
    """What a tokenizer is read from: text tokens, then the control tokens, and the template.

    thinking: with K2-Thinking's two markers among the control tokens.
    """
    named = CONTROL_TOKENS | (THINK_TOKENS if thinking else {})
    first = len(tokens)
    control = [named.get(offset) for offset in range(NUM_CONTROL_IDS)]
    names = [name or f"[PAD{first + offset}]" for offset, name in enumerate(control)]
    kinds = [gguf.TokenType.CONTROL if name else gguf.TokenType.UNUSED for name in control]
    template = Path(__file__).with_name("chat_template.jinja")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": [*tokens, *names],
        "tokenizer.ggml.token_type": [*([gguf.TokenType.NORMAL] * first), *kinds],
        "tokenizer.chat_template": template.read_text(encoding="utf-8"),
    }

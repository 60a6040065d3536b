"""A small K2-like vocabulary for tests that must run without K2's own files.

Same conventions as K2's (ranks are ids, then a block of 256 control ids in K2's order), but other
ids and 200 merges. Also writes a vocabulary as the metadata of a GGUF file and as a Hugging Face
directory, as other programs would. Knows nothing of models.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

from hybrid_k2.text.vocabulary import Vocabulary

CORPUS = (
    "hello hello hello world world the system user assistant tool functions answers the question "
    "he's they're we'll HELLO World helloWorld 1234567890 café naïve def f(x): return x + 1\n\n"
    "你好世界。你好 北京的天气 😀👍🏽😀 <|im_end|> <think> <|im_user|>    \t\t\r\n end ends ending "
    "Kimi runs on a workstation of yours. What is the weather in Beijing? It is sunny. "
    "Zero.\n\nOne.\n\nTwo.\n\n"
)
THINK_NAMES = {22: "<think>", 23: "</think>"}
MEDIA_NAMES = {18: "<|media_begin|>", 19: "<|media_content|>", 20: "<|media_end|>"}
CONTROL_NAMES = {
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
    254: "[UNK]",
    255: "[PAD]",
}


def small_vocabulary(thinking: bool = False, media: bool = False, template: str = "") -> Vocabulary:
    """256 bytes, 200 merges, 256 control ids; the names of Instruct, with Thinking's if asked."""
    tokens = [bytes((value,)) for value in range(256)] + _merged_tokens(CORPUS, 200)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    names = dict(CONTROL_NAMES)
    names |= THINK_NAMES if thinking else {}
    names |= MEDIA_NAMES if media else {}
    control = {name: len(ranks) + offset for offset, name in names.items()}
    gaps = [len(ranks) + offset for offset in range(256) if offset not in names]
    return Vocabulary(ranks, control, {i: f"<|reserved_token_{i}|>" for i in gaps}, template)


def gguf_metadata(vocabulary: Vocabulary, user_defined: Collection[str] = ()) -> dict[str, Any]:
    """The tokenizer.* keys that llama.cpp's converter writes; GPT-2's letters by transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    tokens, types = [""] * vocabulary.size, [0] * vocabulary.size
    for token, token_id in vocabulary.ranks.items():
        tokens[token_id], types[token_id] = "".join(letters[byte] for byte in token), 1
    for name, token_id in vocabulary.control.items():
        tokens[token_id], types[token_id] = name, 4 if name in user_defined else 3
    for token_id in vocabulary.unused:
        tokens[token_id], types[token_id] = f"[PAD{token_id}]", 5
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.chat_template": vocabulary.chat_template,
    }


def write_directory(vocabulary: Vocabulary, folder: Path) -> Path:
    """Writes tiktoken.model and tokenizer_config.json as Moonshot's repositories have them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (base64.b64encode(t) + b" %d\n" % rank for t, rank in vocabulary.ranks.items())
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    added = {str(i): {"content": name, "special": True} for name, i in vocabulary.control.items()}
    config = {"added_tokens_decoder": added, "chat_template": vocabulary.chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _merged_tokens(text: str, count: int) -> list[bytes]:
    """Trains byte pairs the textbook way: merge the most frequent neighbours, `count` times."""
    words = [
        [bytes((byte,)) for byte in word.encode()] for word in re.findall(r" ?\S+|\s+", text) * 2
    ]
    merged: list[bytes] = []
    while len(merged) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged.append(best[0] + best[1])
        for word in words:
            for index in reversed(range(len(word) - 1)):
                if tuple(word[index : index + 2]) == best:
                    word[index : index + 2] = [merged[-1]]
    return list(dict.fromkeys(merged))

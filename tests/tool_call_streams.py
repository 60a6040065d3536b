"""Streams with tool calls for tests: written in short, turned into ids in four ways, and read.

Knows nothing of servers.
"""

import re
from typing import Any

from text_factory import small_vocabulary

from hybrid_k2.text import Delta, TextStream, Tokenizer
from hybrid_k2.text.markers import TOOL_MARKER_ALIASES, TOOL_MARKERS
from hybrid_k2.text.tool_calls import CallArguments, CallEnd, CallStart, collect_calls

TOKENIZER = Tokenizer(small_vocabulary(thinking=True))
BYTE_IDS = {TOKENIZER.token_bytes(i)[0]: i for i in range(256)}
SHORT = {
    "B": "<|tool_calls_section_begin|>",
    "E": "<|tool_calls_section_end|>",
    "b": "<|tool_call_begin|>",
    "a": "<|tool_call_argument_begin|>",
    "e": "<|tool_call_end|>",
}
THINK = ("<think>", "</think>")
ALIAS = {name: alias for alias, name in TOOL_MARKER_ALIASES.items()}


def tool(name: str, *keys: str) -> dict[str, Any]:
    properties = {key: {"type": "string"} for key in keys}
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


TOOLS = [
    tool("f", "x"),
    tool("g", "y", "z"),
    tool("my-tool"),
    tool("ns.tool"),
    tool("other", "y"),
    {"type": "web_search"},
]


def spelt(text: str) -> str:
    """Writes out ⟨B⟩, ⟨E⟩, ⟨b⟩, ⟨a⟩, ⟨e⟩."""
    return re.sub("⟨(.)⟩", lambda found: SHORT[found[1]], text)


def as_tokens(text: str) -> list[int]:
    """Markers as control tokens, the rest as the tokenizer has it."""
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, (*TOOL_MARKERS, *THINK))) + ")", text):
        token_id = TOKENIZER.special_id(part)
        ids += TOKENIZER.encode(part) if token_id is None else [token_id]
    return ids


def as_text(text: str) -> list[int]:
    """Only the think markers, for which there is no other spelling, as control tokens."""
    ids: list[int] = []
    for part in re.split("(</?think>)", text):
        ids += [TOKENIZER.special_id(part)] if part in THINK else TOKENIZER.encode(part)
    return ids


def as_bytes(text: str) -> list[int]:
    ids: list[int] = []
    for part in re.split("(</?think>)", text):
        think = TOKENIZER.special_id(part)
        ids += [BYTE_IDS[byte] for byte in part.encode()] if think is None else [think]
    return ids


def aliased(text: str) -> str:
    """Markers as K2's report spells them, where that is otherwise than the vocabulary has them."""
    for name, alias in ALIAS.items():
        text = text.replace(name, alias)
    return text


def as_alias(text: str) -> list[int]:
    """The report's spellings, with control tokens for the others."""
    return as_tokens(aliased(text))


WAYS = [as_tokens, as_text, as_bytes, as_alias]


def deltas_of(ids: list[int], **options: Any) -> list[Any]:
    stream = TextStream(TOKENIZER, **{"tools": TOOLS, **options})
    deltas = [delta for token_id in ids for delta in stream.push(token_id)] + stream.finish()
    assert stream.finish() == []
    check_order(deltas)
    return [*deltas, stream.finish_reason("stop")]


def check_order(deltas: list[Any]) -> None:
    """Indices count from 0; a call's start, its arguments and its end follow each other."""
    started = 0
    is_open = False
    for delta in deltas:
        if isinstance(delta, CallStart):
            assert (delta.index, is_open) == (started, False)
            started, is_open = started + 1, True
        elif isinstance(delta, CallArguments | CallEnd):
            assert (delta.index, is_open) == (started - 1, True)
            is_open = isinstance(delta, CallArguments)
            assert not is_open or delta.text
        elif isinstance(delta, Delta):
            assert delta.text
    assert not is_open


def read(ids: list[int], **options: Any) -> tuple[str, str, list[tuple[str, str, str]], str]:
    """Reasoning, content, complete calls as (name, arguments, id), and the finish reason."""
    *deltas, reason = deltas_of(ids, **options)
    texts = [delta for delta in deltas if isinstance(delta, Delta)]
    return (
        "".join(d.text for d in texts if d.channel == "reasoning"),
        "".join(d.text for d in texts if d.channel == "content"),
        [(call.name, call.arguments, call.id) for call in collect_calls(deltas)],
        reason,
    )


def calls(*named: tuple[str, str]) -> list[tuple[str, str, str]]:
    return [(name, text, f"functions.{name}:{k}") for k, (name, text) in enumerate(named)]

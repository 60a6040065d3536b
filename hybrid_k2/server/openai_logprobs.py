"""Logprobs of an answer's tokens in OpenAI's shape, which chat completions and Responses share.

Knows nothing of requests.
"""

from collections.abc import Iterable
from typing import Any

from hybrid_k2.engine.sampler import TokenLogprobs
from hybrid_k2.text import Tokenizer


def logprob_objects(
    tokenizer: Tokenizer, entries: Iterable[tuple[int, TokenLogprobs]]
) -> list[dict[str, Any]]:
    """One object a token, with those of the likeliest in its place."""
    return [
        {
            **_object(tokenizer, token_id, logprobs.logprob),
            "top_logprobs": [_object(tokenizer, *likely) for likely in logprobs.top],
        }
        for token_id, logprobs in entries
    ]


def _object(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    spelt = tokenizer.token_bytes(token_id)
    return {
        "token": spelt.decode("utf-8", "replace"),
        "logprob": logprob,
        "bytes": list(spelt),
    }

"""What a caller may ask of sampling, validated once.

Owns the ranges and the wording of their errors. Knows nothing of logits, of the model's vocabulary
(the engine checks ids against it) or of HTTP field names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_k2.engine.constraint import Grammar
from hybrid_k2.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request chooses its tokens; RequestError names the field, value and range.

    temperature: 0 is greedy.  top_k: 0 is off.  seed: None draws fresh entropy; the same seed gives
    the same tokens whatever else runs.  max_tokens: None generates to the end of the context.
    stop_token_ids: end the answer besides the model's own end tokens, which `ignore_eos` turns off.
    min_tokens: the answer cannot end by any of these before it has so many.
    repetition_penalty: logits of tokens in prompt and answer are divided by it where positive, else
    multiplied; 1 is off.
    logprobs: None for none, n for the chosen token's logarithmic probability and those of the n
    likeliest.
    grammar: what the answer must look like; None: anything.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0, 100)
        _check_number("top_p", self.top_p, 0, 1)
        _check_integer("top_k", self.top_k, 0, 2**31 - 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_number("presence_penalty", self.presence_penalty, -2, 2)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 2)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0, 2**31 - 1)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries; give at most {MAX_LOGIT_BIAS}"
            )
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias token id", token_id, 0, 2**31 - 1)
            _check_number(f"logit_bias[{token_id}]", bias, -100, 100)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}; it must be a number from {low} to {high}")


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}; it must be an integer from {low} to {high}")


def shown(value: object) -> str:
    """`value` as an error message shows it, never longer than a line."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

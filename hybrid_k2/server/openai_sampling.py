"""OpenAI's sampling fields as the engine's SamplingParams, which check their ranges.

Knows nothing of prompts or answers.
"""

import dataclasses

from hybrid_k2.engine import SamplingParams
from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.schemas import GenerationRequest
from hybrid_k2.server.service import Service
from hybrid_k2.text import ChatTemplate

_SAME_NAMES = (
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
)


def sampling_choices(
    service: Service,
    body: GenerationRequest,
    template: ChatTemplate,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> list[SamplingParams]:
    """One SamplingParams a choice; with a seed each choice has its own, derived from it.

    Raises ApiError 400 for more choices than the engine has places.
    """
    num_choices, max_choices = body.n or 1, service.core.max_sequences
    if num_choices > max_choices:
        raise ApiError(400, f"n is {body.n}; this server gives up to {max_choices}", param="n")
    if max_tokens is None:
        max_tokens = service.settings.max_new_tokens
    temperature = body.temperature
    if temperature is None:
        temperature = template.default_temperature
    given = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": body.seed,
        "logprobs": logprobs,
        "logit_bias": _logit_bias(body.logit_bias),
    }
    given |= {name: getattr(body, name) for name in _SAME_NAMES}
    params = SamplingParams(**{name: value for name, value in given.items() if value is not None})
    if params.seed is None:
        return [params] * num_choices
    return [dataclasses.replace(params, seed=params.seed + i) for i in range(num_choices)]


def _logit_bias(biases: dict[str, float] | None) -> dict[int, float] | None:
    if biases is None:
        return None
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ApiError(400, f"logit_bias: {key[:80]!r} is not a token id", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}

"""Every error a user can cause, by kind: each message names the thing, the value, the limit and
the next step.

Knows nothing of what raises it. The CLI turns `exit_code` into the process's status and prints the
message without a traceback; the server maps classes to HTTP statuses in one table
(`server/errors.py`).
"""


class HybridK2Error(Exception):
    """Base of all errors this package raises on purpose; `exit_code` is the CLI's status (1
    failed, 2 bad input).
    """

    exit_code = 1


class BadInputError(HybridK2Error):
    """The user's file, option, rule or prompt is wrong; nothing was computed from it."""

    exit_code = 2


class ModelFileError(BadInputError):
    """A GGUF, safetensors or config file is missing, malformed, or not a Kimi K2."""


class RuleError(BadInputError):
    """A rule file is wrong; the message starts with `file:line:`."""


class PlanError(BadInputError):
    """The plan does not fit this machine's RAM, VRAM or disk."""


class TokenizerError(BadInputError):
    """Tokenizer data is missing or malformed, or a chat message cannot be rendered."""


class RequestError(BadInputError):
    """A generation request is out of range: a prompt longer than the context, a token id beyond
    the vocabulary.
    """


class ContextLengthError(RequestError):
    """The prompt does not fit the context; clients match this wording to compact a conversation."""

    def __init__(self, num_tokens: int, context: int) -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, your request "
            f"resulted in {num_tokens} tokens "
            f"(prompt is too long: {num_tokens} tokens > {context} maximum)."
        )
        self.num_tokens = num_tokens
        self.context = context


class MissingPackageError(BadInputError):
    """An optional package is needed for what was asked; the message has the pip command."""


class NonFiniteError(HybridK2Error):
    """NaN or infinity came out of the model; the message names the first tensor that holds it."""

    exit_code = 2

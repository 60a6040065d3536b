"""What an operator chooses about the server; frozen. Knows nothing of requests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Times in seconds. `host` is what the socket is bound to.

    api_keys: one of them lets a request in; without any the API is open. Where there are several,
    their holders share no cached prefixes.
    allowed_hosts: names besides loopback's that a Host header may carry.
    cors_origins: pages of these origins may use the API from a browser; "*" lets all of them.
    max_waiting: requests queued beyond the engine's places before the next one gets a 429.
    max_new_tokens: of an answer whose request names no length; None is the rest of the context.
    max_stored_responses: Responses that /v1/responses remembers.
    hide_tool_outputs: where a dialogue outgrows the context, leave earlier tools' outputs out.
    stream_interval_s: tokens that come closer than this share an event; slower ones never wait.
    reasoning_fields: names under which chat completions hold reasoning.
    scale_temperature: take /v1/messages' temperature x 0.6 for Instruct models.
    """

    model_name: str = "kimi-k2"
    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_waiting: int = 64
    max_body_bytes: int = 32 << 20
    body_timeout_s: float = 60.0
    max_new_tokens: int | None = None
    max_stored_responses: int = 256
    request_timeout_s: float = 3600.0
    keep_alive_s: float = 10.0
    stream_interval_s: float = 0.04
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning")
    scale_temperature: bool = True
    hide_tool_outputs: bool = False

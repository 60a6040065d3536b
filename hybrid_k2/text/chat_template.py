"""K2's chat templates in Python: messages in, token ids out.

Markers are written as ids and everything a user, a tool or a client typed is encoded as text, so a
message that spells `<|im_end|>` stays a message. One renderer serves the three variants (instruct,
thinking, k2.5); how they differ is the table VARIANTS and the few lines that read it. Knows nothing
of HTTP, of streaming or of what the model answers.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_k2.errors import TokenizerError
from hybrid_k2.text.call_ids import CallIds
from hybrid_k2.text.markers import (
    IM_ASSISTANT,
    IM_END,
    IM_MIDDLE,
    IM_SYSTEM,
    IM_USER,
    MEDIA_BEGIN,
    THINK_BEGIN,
    THINK_END,
    TOOL_ARGUMENT_BEGIN,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_SECTION_BEGIN,
    TOOL_SECTION_END,
)
from hybrid_k2.text.tokenizer import Tokenizer
from hybrid_k2.text.typescript_tools import typescript_declaration

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."

TEMPERATURE_KEY = "general.sampling.temp"  # GGUF's, which llama.cpp's converter writes

_MARKER_OF_ROLE = {
    "user": IM_USER,
    "assistant": IM_ASSISTANT,
    "system": IM_SYSTEM,
    "tool": IM_SYSTEM,
}
_MARKERS = (IM_END, IM_USER, IM_ASSISTANT, IM_SYSTEM, IM_MIDDLE)


@dataclass(frozen=True, slots=True)
class Variant:
    """What distinguishes one release's template; the defaults are those of Kimi-K2-Instruct."""

    default_system: str | None = DEFAULT_SYSTEM
    # The released Instruct template leaves a line break behind the system prompt it inserts.
    after_default_system: str = ""
    thinks: bool = False
    # Later templates put <think> into the prompt; before, the model begins its answer with it.
    prompt_opens_thinking: bool = False
    # Later models are told of their tools in TypeScript, the earlier ones in JSON.
    typescript_tools: bool = False


VARIANTS: Mapping[str, Variant] = {
    "instruct": Variant(after_default_system="\n"),
    "thinking": Variant(thinks=True),
    "k2.5": Variant(
        default_system=None, thinks=True, prompt_opens_thinking=True, typescript_tools=True
    ),
}


class Marker(str):
    """A piece of a rendered prompt that is one control token; every other piece is text."""

    __slots__ = ()


class ChatTemplate:
    """Renders conversations for one tokenizer and one variant; immutable."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        variant: str,
        *,
        thinking: bool = True,
        preserve_thinking: bool = False,
        temperature: float | None = None,
    ) -> None:
        """Raises TokenizerError for an unknown variant or one whose markers the vocabulary lacks.

        thinking: False asks a k2.5 model for an answer without reasoning (others have no such
        switch).
        preserve_thinking: keeps the reasoning of all earlier turns in the prompt, as K2.6 can.
        temperature: the model's own default; None is its release's.
        """
        if variant not in VARIANTS:
            raise TokenizerError(
                f"chat template {variant!r} is unknown; there are {', '.join(VARIANTS)}"
            )
        self.variant = variant
        self._rules = VARIANTS[variant]
        self._tokenizer = tokenizer
        self._preserve_thinking = preserve_thinking
        self._temperature = temperature
        self.thinking = self._rules.thinks and (thinking or not self._rules.prompt_opens_thinking)
        of_release = 1.0 if self.thinking else 0.6
        self.default_temperature = of_release if temperature is None else temperature
        self.default_system = self._rules.default_system
        for name in (*_MARKERS, *((THINK_BEGIN, THINK_END) if self._rules.thinks else ())):
            self._marker_id(name)

    @classmethod
    def for_model(
        cls,
        tokenizer: Tokenizer,
        metadata: Mapping[str, Any] | None = None,
        variant: str | None = None,
        **options: bool,
    ) -> "ChatTemplate":
        """Picks the variant: `variant` if given, else what template text and vocabulary show.

        The template text is the one found beside the tokenizer, else the GGUF metadata's; it is
        only looked at, never run. The metadata may name a temperature, too. options: as in
        __init__.
        """
        if variant is None:
            text = tokenizer.chat_template or (metadata or {}).get("tokenizer.chat_template")
            variant = _detect(text if isinstance(text, str) else "", tokenizer)
            logger.info("chat template: %s", variant)
        return cls(tokenizer, variant, temperature=_temperature(metadata or {}), **options)

    def with_variant(self, variant: str) -> "ChatTemplate":
        """The same vocabulary under another variant's rules."""
        return ChatTemplate(self._tokenizer, variant, temperature=self._temperature)

    def with_thinking(
        self, thinking: bool | None, preserve_thinking: bool = False
    ) -> "ChatTemplate":
        """The same with these switches; None leaves it to the model whether it thinks.

        An instruct model whose vocabulary has the markers of thinking, which K2's own has not,
        thinks as K2-Thinking does where it is asked to.
        """
        can_think = self._tokenizer.special_id(THINK_BEGIN) is not None
        switches = thinking is True and self.variant == "instruct" and can_think
        return ChatTemplate(
            self._tokenizer,
            "thinking" if switches else self.variant,
            thinking=thinking is not False,
            preserve_thinking=preserve_thinking,
            temperature=self._temperature,
        )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Returns the prompt's token ids.

        messages: OpenAI's form: role, content (a string, None, or a list of text parts), name,
        reasoning_content, tool_calls, tool_call_id.  tools: OpenAI's list.  Raises TokenizerError
        naming the message and the key, and ContextLengthError soon after max_tokens is exceeded.
        """
        ids: list[int] = []
        text: list[str] = []

        def flush() -> None:
            # Neighbouring pieces of text are encoded as one: a merge may cross their border.
            self._tokenizer.append_to(ids, "".join(text), max_tokens)
            text.clear()

        for piece in self._pieces(messages, tools, add_generation_prompt):
            if isinstance(piece, Marker):
                flush()
                ids.append(self._marker_id(piece))
            else:
                text.append(piece)
        flush()
        return ids

    def render_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the prompt spelt out, for people to read; never encode it: use render()."""
        return "".join(self._pieces(messages, tools, add_generation_prompt))

    def _marker_id(self, name: str) -> int:
        token_id = self._tokenizer.special_id(name)
        if token_id is None:
            raise TokenizerError(
                f"the tokenizer has no control token {name}, which the {self.variant} chat "
                "template writes; is this the model's own tokenizer?"
            )
        return token_id

    def _pieces(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> Iterator[str]:
        if not messages:
            raise TokenizerError("messages is empty; send at least one")
        roles = [_role(message, index) for index, message in enumerate(messages)]
        if tools:
            yield from (Marker(IM_SYSTEM), "tool_declare", Marker(IM_MIDDLE))
            yield _declaration(tools, self._rules.typescript_tools)
            yield Marker(IM_END)
        if roles[0] != "system" and self.default_system is not None:
            yield from (Marker(IM_SYSTEM), "system", Marker(IM_MIDDLE))
            yield from (self.default_system, Marker(IM_END), self._rules.after_default_system)
        first_kept = self._first_kept_reasoning(messages, roles)
        call_ids = CallIds()
        for index, (message, role) in enumerate(zip(messages, roles, strict=True)):
            where = f"messages[{index}]"
            yield from (Marker(_MARKER_OF_ROLE[role]), _string(message, "name", where) or role)
            yield Marker(IM_MIDDLE)
            if role == "assistant" and self._rules.thinks:
                reasoning = _string(message, "reasoning_content", where)
                kept = reasoning if index >= first_kept else ""
                yield from (Marker(THINK_BEGIN), kept, Marker(THINK_END))
            if role == "tool":
                yield f"## Return of {call_ids.renamed(_call_id(message, where))}\n"
            yield _content(message, role, where)
            if role == "assistant" and message.get("tool_calls"):
                yield from _tool_calls(message["tool_calls"], call_ids, f"{where}.tool_calls")
            yield Marker(IM_END)
        if add_generation_prompt:
            yield from (Marker(IM_ASSISTANT), "assistant", Marker(IM_MIDDLE))
            if self._rules.prompt_opens_thinking:
                yield Marker(THINK_BEGIN)
                if not self.thinking:
                    yield Marker(THINK_END)

    def _first_kept_reasoning(self, messages: Sequence[Message], roles: Sequence[str]) -> int:
        """Returns where reasoning stays from: behind the last answer that called no tool."""
        if self._preserve_thinking:
            return 0
        for index in reversed(range(len(messages))):
            if roles[index] == "assistant" and not messages[index].get("tool_calls"):
                return index + 1
        return 0


def _detect(template: str, tokenizer: Tokenizer) -> str:
    """Returns the variant that a template's text shows, or, where there is none, the vocabulary."""
    thinks = tokenizer.special_id(THINK_BEGIN) is not None
    if template:
        if THINK_BEGIN not in template:
            return "instruct"
        later = MEDIA_BEGIN in template or "thinking is defined" in template
        return "k2.5" if later else "thinking"
    if thinks and tokenizer.special_id(MEDIA_BEGIN) is not None:
        return "k2.5"
    return "thinking" if thinks else "instruct"


def _temperature(metadata: Mapping[str, Any]) -> float | None:
    """Returns the temperature that a file recommends; None where it names none that can be."""
    value = metadata.get(TEMPERATURE_KEY)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 2:
        return round(float(value), 6)  # a float32: 0.3 is stored as 0.30000001
    if value is not None:
        logger.warning("%s is %r, no number of 0 to 2; ignored", TEMPERATURE_KEY, value)
    return None


def _role(message: Message, index: int) -> str:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"messages[{index}] must be an object, is a {type(message).__name__}")
    role = message.get("role")
    if role == "developer":  # OpenAI's newer word for system
        return "system"
    if not isinstance(role, str) or role not in _MARKER_OF_ROLE:
        raise TokenizerError(
            f"messages[{index}].role is {role!r}; must be one of {', '.join(_MARKER_OF_ROLE)}"
        )
    return role


def _string(message: Message, key: str, where: str) -> str:
    """Returns a string member, "" where it is absent or null."""
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TokenizerError(f"{where}.{key} must be a string, is a {type(value).__name__}")
    return value


def _call_id(message: Message, where: str) -> str:
    call_id = _string(message, "tool_call_id", where)
    if not call_id:
        raise TokenizerError(f"{where}.tool_call_id is missing; it names the call answered")
    return call_id


def _content(message: Message, role: str, where: str) -> str:
    """Returns a message's text; the text parts of a list are joined without a separator."""
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise TokenizerError(f"{where}.content is missing; only an assistant's may be")
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise TokenizerError(
            f"{where}.content must be a string or a list of text parts, "
            f"is a {type(content).__name__}"
        )
    return "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise TokenizerError(f"{where} has type {kind!r}; this model reads text parts only")
    text = part.get("text")
    if not isinstance(text, str):
        raise TokenizerError(f"{where}.text must be a string, is a {type(text).__name__}")
    return text


def _tool_calls(calls: Any, call_ids: CallIds, where: str) -> Iterator[str]:
    if not isinstance(calls, list | tuple):
        raise TokenizerError(f"{where} must be a list, is a {type(calls).__name__}")
    yield Marker(TOOL_SECTION_BEGIN)
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise TokenizerError(f"{where}[{index}].function must be an object with a name")
        name = _string(function, "name", f"{where}[{index}].function")
        if not name:
            raise TokenizerError(f"{where}[{index}].function.name is missing")
        old = _string(call, "id", f"{where}[{index}]")
        yield from (Marker(TOOL_CALL_BEGIN), call_ids.rename(name, old))
        yield Marker(TOOL_ARGUMENT_BEGIN)
        yield _arguments(function.get("arguments"), f"{where}[{index}].function.arguments")
        yield Marker(TOOL_CALL_END)
    yield Marker(TOOL_SECTION_END)


def _arguments(arguments: Any, where: str) -> str:
    if arguments is None:
        return "{}"
    if isinstance(arguments, str):
        return arguments
    if not isinstance(arguments, Mapping):
        raise TokenizerError(
            f"{where} must be a JSON string or an object, is a {type(arguments).__name__}"
        )
    return _json(arguments, where)


def _declaration(tools: Any, as_typescript: bool) -> str:
    """Returns the tools as the model was trained on them: TypeScript, or compact JSON, sorted."""
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise TokenizerError("tools must be a list of objects, each with type and function")
    text = typescript_declaration(tools) if as_typescript else None
    return text or _json(tools, "tools", separators=(",", ":"), sort_keys=True)


def _json(value: Any, where: str, **options: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{where} cannot be written as JSON: {error}") from error

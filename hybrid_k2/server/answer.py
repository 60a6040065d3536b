"""An answer between engine and wire: tokens in, pieces of text and of tool calls out.

Owns stop strings, the split into reasoning, content and calls, and the counts for usage. Any API's
routes can read it; it knows none of them.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_k2.engine import RunningRequest, SamplingParams, StepOutput
from hybrid_k2.engine.sampler import TokenLogprobs
from hybrid_k2.server.engine_thread import EngineThread
from hybrid_k2.server.generation import Arrival, Generation
from hybrid_k2.text import Delta, TextStream, Tokenizer
from hybrid_k2.text.tool_calls import CallDelta, CallDropped

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain of one choice: text and calls in order, and its tokens' logprobs.

    finish_reason: "stop", "length", "tool_calls" or "abort" on a choice's last piece, else None.
    num_thought: how many of the logprobs, the first, are of reasoning.
    stop_string: the one that ended the choice, on its last piece.
    progress: how far the prompt is read, on a piece that has nothing else.
    """

    index: int
    deltas: tuple[Delta | CallDelta, ...] = ()
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    num_thought: int = 0
    finish_reason: str | None = None
    stop_string: str | None = None
    progress: RunningRequest | None = None

    @property
    def content(self) -> str:
        return self._text("content")

    @property
    def reasoning(self) -> str:
        return self._text("reasoning")

    @property
    def calls(self) -> tuple[CallDelta, ...]:
        return tuple(delta for delta in self.deltas if not isinstance(delta, Delta))

    def _text(self, channel: str) -> str:
        texts = (delta for delta in self.deltas if isinstance(delta, Delta))
        return "".join(delta.text for delta in texts if delta.channel == channel)


@dataclass(slots=True)
class Usage:
    """Tokens of a request, counted while it runs."""

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # among the completion's
    cached_tokens: int = 0

    def counts(self) -> dict[str, int]:
        """All of it by name."""
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Timings:
    """When a request began and when its first and latest token came, in seconds of one clock."""

    started_s: float
    first_s: float | None = None
    latest_s: float | None = None

    def token(self) -> None:
        """Notes that a token came."""
        self.latest_s = time.perf_counter()
        if self.first_s is None:
            self.first_s = self.latest_s


@dataclass(slots=True)
class _Choice:
    """One choice, and what of it is not in a piece yet."""

    stream: TextStream
    num_since_reasoning: int = 0  # tokens
    deltas: list[Delta | CallDelta] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    num_thought: int = 0  # of the logprobs
    finish_reason: str | None = None

    def piece(self, index: int) -> Piece:
        """All of that, which it then forgets."""
        piece = Piece(
            index,
            deltas=tuple(_joined(_without_dropped(self.deltas))),
            logprobs=tuple(self.logprobs),
            num_thought=self.num_thought,
            finish_reason=self.finish_reason,
            stop_string=self.stream.stopped,
        )
        self.deltas.clear()
        self.logprobs.clear()
        self.num_thought = 0
        return piece


class Answer:
    """The choices of one request. Iterate once; close it, whatever happens."""

    def __init__(
        self, generation: Generation, num_prompt_tokens: int, streams: Sequence[TextStream]
    ) -> None:
        self.usage = Usage(num_prompt_tokens)
        self.timings = Timings(time.perf_counter())
        self._generation = generation
        self._choices = [_Choice(stream) for stream in streams]

    @classmethod
    async def start(
        cls,
        thread: EngineThread,
        tokenizer: Tokenizer,
        token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        *,
        stop: Sequence[str] = (),
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = (),
        history: Sequence[Mapping[str, Any]] = (),
        parallel_tool_calls: bool = True,
        timeout_s: float | None = None,
        with_progress: bool = False,
        cache_salt: str = "",
    ) -> "Answer":
        """Hands the prompt to the engine; raises as EngineThread.submit does.

        with_progress: pieces that say how far the prompt is read, too.
        tools, history, parallel_tool_calls: as for TextStream.
        """
        streams = [
            TextStream(
                tokenizer,
                stop,
                thinking,
                tools=tools,
                history=history,
                parallel_tool_calls=parallel_tool_calls,
            )
            for _ in choices
        ]
        generation = await thread.submit(
            token_ids, choices, timeout_s, with_progress=with_progress, cache_salt=cache_salt
        )
        return cls(generation, len(token_ids), streams)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields text as it becomes certain, and for every choice a last piece with its reason."""
        async for arrivals in self._generation:
            for piece in self._read(arrivals):
                yield piece

    def cancel(self) -> None:
        """Ends every choice with what it has; the last pieces' reason is "abort"."""
        self._generation.cancel()

    def close(self) -> None:
        """Aborts what still runs."""
        self._generation.close()

    def _read(self, arrivals: Sequence[Arrival]) -> Iterator[Piece]:
        """The progress they report, then one piece of each choice of which something is certain."""
        read: dict[int, _Choice] = {}
        for index, output in arrivals:
            if isinstance(output, RunningRequest):
                yield Piece(index, progress=output)
            elif self._choices[index].finish_reason is None:  # else its stop string came before
                read[index] = self._choices[index]
                self._take(index, output)
        for index, choice in read.items():
            if choice.deltas or choice.finish_reason is not None:
                yield choice.piece(index)

    def _take(self, index: int, output: StepOutput) -> None:
        choice = self._choices[index]
        self.usage.cached_tokens = max(self.usage.cached_tokens, output.num_cached_tokens)
        finish_reason = output.finish_reason
        if output.token_id is not None:
            self.usage.completion_tokens += 1
            self.timings.token()
            deltas = choice.stream.push(output.token_id)
            self._count_reasoning(choice, deltas)
            choice.deltas += deltas
            if output.logprobs is not None:
                choice.logprobs.append((output.token_id, output.logprobs))
                if choice.num_since_reasoning == 0:
                    choice.num_thought = len(choice.logprobs)
        if choice.stream.is_finished:
            self._generation.abort(index)
            finish_reason = "stop"
        if finish_reason is not None:
            choice.deltas += choice.stream.finish()
            choice.finish_reason = choice.stream.finish_reason(finish_reason)

    def _count_reasoning(self, choice: _Choice, deltas: Sequence[Delta | CallDelta]) -> None:
        """Reasoning comes first: all tokens up to its latest piece are reasoning's."""
        choice.num_since_reasoning += 1
        if any(isinstance(delta, Delta) and delta.channel == "reasoning" for delta in deltas):
            self.usage.reasoning_tokens += choice.num_since_reasoning
            choice.num_since_reasoning = 0


def _without_dropped(deltas: Sequence[Delta | CallDelta]) -> Iterator[Delta | CallDelta]:
    for delta in deltas:
        if isinstance(delta, CallDropped):
            log.warning("dropped the model's call %.80r: %s", delta.id_text, delta.reason)
        else:
            yield delta


def _joined(deltas: Iterable[Delta | CallDelta]) -> Iterator[Delta | CallDelta]:
    """Neighbours on one channel as one."""
    for channel, group in itertools.groupby(deltas, lambda delta: getattr(delta, "channel", None)):
        if channel is None:
            yield from group
        else:
            yield Delta(channel, "".join(delta.text for delta in group))

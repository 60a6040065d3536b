"""A fake engine for chat tests: a real tokenizer and template, answers written beforehand.

Knows nothing of models; `prompts` and `params` show what the chat asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from text_factory import small_vocabulary

from hybrid_k2.engine.stats import EngineStats
from hybrid_k2.text import ChatTemplate, Tokenizer

TOKENIZERS = {thinks: Tokenizer(small_vocabulary(thinking=thinks)) for thinks in (False, True)}


class FakeEngine:
    """Gives `answers` in turn; an exception among a list's pieces is raised at that point."""

    def __init__(
        self,
        answers: Sequence[str | list[Any]] = (),
        variant: str = "instruct",
        context: int = 512,
        notice: str | None = None,
    ) -> None:
        self.tokenizer = TOKENIZERS[variant == "thinking"]
        self.template = ChatTemplate(self.tokenizer, variant)
        self.core = SimpleNamespace(context=context, stats=EngineStats())
        self.name, self.notice, self.is_demo = "fake K2", notice, notice is not None
        self.prompts: list[str] = []
        self.params: list[Any] = []
        self.num_yielded = 0
        self.is_closed = False
        self._answers = [answer if isinstance(answer, list) else [answer] for answer in answers]

    def generate(self, token_ids: Sequence[int], params: Any) -> Iterator[int]:
        self.prompts.append(self.tokenizer.decode(token_ids))
        self.params.append(params)
        most = min(params.max_tokens or self.core.context, self.core.context - len(token_ids))
        self._count(prefill_tokens=len(token_ids), prefill_s=0.5)
        for _, token_id in zip(range(most), self._ids(self._answers.pop(0)), strict=False):
            self._count(decode_tokens=1, decode_s=0.1)
            self.num_yielded += 1
            yield token_id

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ids(self, pieces: list[Any]) -> Iterator[int]:
        """Control tokens by name, text a token a byte or more, ids as they are."""
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, int):
                yield piece
            elif (control_id := self.tokenizer.special_id(piece)) is not None:
                yield control_id
            else:
                yield from self.tokenizer.encode(piece)

    def _count(self, **counts: Any) -> None:
        before = self.core.stats
        self.core.stats = replace(
            before, **{name: getattr(before, name) + n for name, n in counts.items()}
        )

"""The public `Engine`: a model opened for use, with its tokenizer and chat template beside the
engine proper.

The engine itself (`hybrid_k2.engine`) turns token ids into token ids and knows no text; this joins
the two for the CLI, the server and Python users. Knows nothing of terminals or HTTP.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hybrid_k2 import demo_model
from hybrid_k2.checkpoint import Checkpoint, open_checkpoint
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.engine import EngineCore, SamplingParams
from hybrid_k2.errors import TokenizerError
from hybrid_k2.rules import Plan, load_rules, make_plan, probe_hardware
from hybrid_k2.text import ChatTemplate, Tokenizer

Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all


class Engine:
    """A loaded Kimi K2. Use as a context manager, or call close(). One thread at a time."""

    def __init__(
        self,
        core: EngineCore,
        checkpoint: Checkpoint,
        plan: Plan,
        tokenizer: Tokenizer | None,
        notice: str | None,
    ) -> None:
        """Use `Engine.open`; this only joins the parts. `notice`: what users should be told."""
        self.core = core
        self.plan = plan
        self.notice = notice
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        rules: str | Path = "auto",
        model_path: str | Path | None = None,
        progress: Progress | None = None,
        *,
        allow_disk: bool = False,
        ids_only: bool = False,
        before_loading: Callable[[ChatTemplate, int], None] | None = None,
        **runtime: Any,
    ) -> Self:
        """Opens a model: reads its header, plans it by the rules, checks that it fits, and loads
        it.

        model: a GGUF file, the first file of a split set, or a directory of them; None is the demo
        model that comes with the package.
        rules: `auto`, the name of a rule file that comes with the package, or a path.
        model_path: a Hugging Face directory with config.json and the tokenizer, for a GGUF without
        them.
        progress: called as progress(phase, bytes done, bytes in all) while loading.
        allow_disk: weights larger than RAM are a warning and not an error.
        ids_only: do without a tokenizer, for a model file that has none.
        before_loading: called with the chat template and the tokens of context once both are known;
        what it raises ends opening, before hundreds of gigabytes were read.
        runtime: fields of RuntimeConfig (context, num_threads, prefill_chunk, ...).
        Raises ModelFileError, TokenizerError, RuleError or PlanError before anything is loaded.
        """
        settings = RuntimeConfig.from_env(**runtime)
        checkpoint = open_checkpoint(
            Path(model) if model is not None else demo_model.path(),
            model_path=Path(model_path) if model_path is not None else None,
        )
        try:
            tokenizer = None if ids_only else _open_tokenizer(checkpoint)
            hardware = probe_hardware()
            plan = make_plan(
                checkpoint.modules(),
                checkpoint.config,
                load_rules(rules, hardware),
                settings,
                hardware,
                allow_disk=allow_disk,
            )
            if before_loading is not None and tokenizer is not None:
                before_loading(ChatTemplate.for_model(tokenizer, checkpoint.metadata), plan.context)
            core = EngineCore.open(
                checkpoint,
                plan,
                settings,
                progress,
                eos_token_ids=tokenizer.eos_ids if tokenizer is not None else (),
            )
        except BaseException:
            checkpoint.close()
            raise
        return cls(core, checkpoint, plan, tokenizer, demo_model.NOTICE if model is None else None)

    @property
    def config(self) -> K2Config:
        return self._checkpoint.config

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def is_demo(self) -> bool:
        return self.notice is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back; TokenizerError where the engine was opened with `ids_only`."""
        if self._tokenizer is None:
            raise TokenizerError("the engine was opened with ids_only; open it without for text")
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The chat template of this model's variant."""
        if self._template is None:
            self._template = ChatTemplate.for_model(self.tokenizer, self._checkpoint.metadata)
        return self._template

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Teacher-forced: float32 [n, vocab], row i predicting token i + 1."""
        return self.core.logits(token_ids)

    def generate(
        self, token_ids: Sequence[int], params: SamplingParams | None = None
    ) -> Iterator[int]:
        """Yields the answer's token ids as they are sampled; the end-of-turn token is not among
        them.
        """
        return self.core.generate(token_ids, params or SamplingParams())

    def close(self) -> None:
        self.core.close()
        self._checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """From the Hugging Face directory where one was given, else from the GGUF."""
    if checkpoint.tokenizer_dir is not None:
        tokenizer = Tokenizer.from_directory(checkpoint.tokenizer_dir)
    elif "tokenizer.ggml.tokens" in checkpoint.metadata:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
    else:
        raise TokenizerError(
            f"{checkpoint.files[0]}: carries no tokenizer; give the directory with tiktoken.model "
            "and tokenizer_config.json with --model-path DIR"
        )
    if tokenizer.vocab_size < checkpoint.config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{checkpoint.config.vocab_size}: it belongs to another model; give the right "
            "directory with --model-path DIR"
        )
    return tokenizer

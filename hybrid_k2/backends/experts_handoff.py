"""The routed experts of a captured decode step: memory that the GPU and the CPU both map.

A captured step publishes each layer's inputs here and waits for the answer; `serve` gives the
answers, the calling thread being one of the CPU's workers. Owns the mapped memory and the number of
the step under way; the protocol is cpp_ext/include/hk2/handoff.h's. Knows no graphs.
"""

from collections.abc import Sequence

import numpy as np
import torch

from hybrid_k2.backends.experts_cpu import ExpertsCpu
from hybrid_k2.config import K2Config

FLAG_STRIDE = 16  # words, as in the C++ header: a cache line for each flag
_TIMEOUT_S = 30.0  # a layer's part on the GPU takes microseconds; a graph behind other work, more


class ExpertsHandoff:
    """Layers are numbered in the order of `experts`."""

    def __init__(
        self,
        config: K2Config,
        experts: Sequence[ExpertsCpu],
        max_tokens: int,
        device: torch.device,
    ) -> None:
        """max_tokens: of the largest step."""

        def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=True)

        # A layer that defers experts asks twice: for the others, then for those.
        calls, self._first_call = [], []
        for layer in experts:
            self._first_call.append(len(calls))
            calls += [layer.matrices] * (2 if layer.deferred_experts else 1)
        self._published = pinned((len(calls), FLAG_STRIDE), torch.int32)
        self._answered = pinned((len(calls), FLAG_STRIDE), torch.int32)
        self.x = pinned((max_tokens, config.hidden_size), torch.float32)
        self.expert_ids = pinned((max_tokens, config.num_experts_per_tok), torch.int32)
        self.weights = pinned((max_tokens, config.num_experts_per_tok), torch.float32)
        self.y = pinned((max_tokens, config.hidden_size), torch.float32)
        self._passed = torch.zeros(len(calls), FLAG_STRIDE, dtype=torch.int32, device=device)
        self.step = 0
        memory = (self._published, self._answered, self.x, self.expert_ids, self.weights, self.y)
        self._handoff = experts[0].kernels.handoff(calls, *memory)

    def begin(self) -> int:
        """The next step's number, which the GPU must be given before it is launched."""
        self.step += 1
        return self.step

    def published(self, layer: int) -> torch.Tensor:
        """The flag that tells the CPU that the layer's inputs are there."""
        return self._published[self._first_call[layer]]

    def take_in(
        self, h: torch.Tensor, shared: torch.Tensor, layer: int, step: torch.Tensor
    ) -> None:
        """On the GPU: h += shared + the CPU's answer, once it is there.

        h, shared: [B, H] float32.  step: int32 [1] on the GPU, the step's number.
        """
        self._add_answer(h, shared, self._first_call[layer], step)

    def defer(self, ids: torch.Tensor, layer: int, step: torch.Tensor) -> None:
        """On the GPU: asks for the deferred experts of a layer that was answered; ids [B, K]."""
        from hybrid_k2.kernels.handoff import publish

        flag = self._published[self._first_call[layer] + 1]
        publish(ids, self.expert_ids[: len(ids)], flag, step)

    def take_deferred(self, layer: int, like: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """On the GPU: what the layer deferred, of `like`'s shape, once it is there; only then may
        inputs be published anew.
        """
        y = torch.zeros_like(like)
        self._add_answer(y, y, self._first_call[layer] + 1, step)
        return y

    def _add_answer(
        self, h: torch.Tensor, added: torch.Tensor, call: int, step: torch.Tensor
    ) -> None:
        from hybrid_k2.kernels.handoff import wait_and_add

        y = self.y[: h.shape[0]]
        wait_and_add(h, added, y, self._answered[call], self._passed[call], step)

    def serve(self, num_tokens: int) -> np.ndarray:
        """Answers all layers of the step that was launched; float64 [layers, 2]: seconds waited for
        each, seconds computed.

        Raises RuntimeError where the GPU does not come, or publishes nonsense; the GPU is then let
        through, and the step's results are worthless.
        """
        return self._handoff.serve(self.step, num_tokens, _TIMEOUT_S)

    def release(self) -> None:
        """Lets the GPU through the step without answers."""
        self._handoff.release(self.step)

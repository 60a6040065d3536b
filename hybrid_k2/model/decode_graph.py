"""One token of each sequence, captured: the same layers as kimi_k2.py's without Python or host
functions between them.

A CUDA graph for each number of sequences runs everything but the routed experts, which the calling
thread computes with the CPU's workers while the graph waits. Owns the graphs and the memory at
fixed addresses that they read and write. Knows nothing of scheduling or of who owns a sequence.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybrid_k2.backends.attention_gpu import AttentionGpu, DecodePositions
from hybrid_k2.backends.experts_cpu import ExpertsCpu
from hybrid_k2.backends.experts_handoff import ExpertsHandoff
from hybrid_k2.backends.linear import LinearGpu
from hybrid_k2.backends.mlp import MlpGpu
from hybrid_k2.backends.norm import Norm
from hybrid_k2.backends.router import Router
from hybrid_k2.config import K2Config
from hybrid_k2.model.kv_cache import PagePool
from hybrid_k2.model.rope import Rope
from hybrid_k2.model.span import Span

log = logging.getLogger(__name__)

MAX_SEQUENCES = 16  # the GPU's kernels read blocks for so many tokens; more are a prompt's business
_CAPTURABLE = (AttentionGpu, LinearGpu, MlpGpu, Norm, Router)


def refusal(config: K2Config, modules: Mapping[str, Any]) -> str | None:
    """Why these modules cannot be captured; None where they can."""
    devices = set()
    for name, module in modules.items():
        if name == "model.embed_tokens":
            continue
        if name.endswith(".experts"):
            if not isinstance(module, ExpertsCpu) or not hasattr(module.kernels, "handoff"):
                return f"{name} does not run on the CPU's C++ kernels"
        elif not isinstance(module, _CAPTURABLE) or module.device.type != "cuda":
            return f"{name} runs on {type(module).__name__}"
        else:
            devices.add(module.device)
    if len(devices) != 1:
        return "the layers are on several GPUs"
    return None if config.q_lora_rank else "queries have no low rank"


class DecodeGraphs:
    """Steps of up to MAX_SEQUENCES sequences; a size is captured when it is first met."""

    def __init__(
        self, config: K2Config, modules: Mapping[str, Any], pool: PagePool, rope: Rope
    ) -> None:
        """modules: as KimiK2 takes them, and `refusal` must have had nothing to say."""
        self._config, self._modules, self._pool = config, modules, pool
        self._device = modules["model.norm"].device
        moe_layers = range(config.first_k_dense_replace, config.num_hidden_layers)
        self._experts = [modules[f"model.layers.{i}.mlp.experts"] for i in moe_layers]
        self._handoff = ExpertsHandoff(config, self._experts, MAX_SEQUENCES, self._device)
        self._inv_freq = rope.inv_freq.to(self._device)
        self._rope_factor = rope.attention_factor
        # Of a step's experts, that the GPU reads in RAM over the bus; None until it is measured.
        self.bus_share: float | None = None
        self._memory_pool = torch.cuda.graph_pool_handle()
        self._steps: dict[int, _Step] = {}

    @property
    def sizes(self) -> set[int]:
        """Numbers of sequences that were captured."""
        return set(self._steps)

    def takes(self, spans: Sequence[Span]) -> bool:
        """True where each span is one token; graphs compute the logits of all."""
        return len(spans) <= MAX_SEQUENCES and all(span.num_tokens == 1 for span in spans)

    def run(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """KimiK2.forward for such spans; their caches have room for the token."""
        num_sequences = len(spans)
        if num_sequences not in self._steps:
            self._steps[num_sequences] = self._capture(num_sequences)
        step = self._steps[num_sequences]
        token_ids = [span.token_ids[0] for span in spans]
        step.h.copy_(self._modules["model.embed_tokens"].rows(token_ids))
        for row, span in enumerate(spans):
            step.positions[row] = span.cache.length
            step.lengths[row] = span.cache.length + 1
            step.block_table[row, : len(span.cache.page_ids)] = span.cache.page_ids
        step.bus_hits[0] = int(self.bus_share * self._num_hits(num_sequences))
        self._replay(step, num_sequences)
        for span in spans:
            span.cache.length += 1
        logits = step.logits.clone()
        return [logits[i : i + 1] if span.num_logits else None for i, span in enumerate(spans)]

    def gpu_seconds(self, num_sequences: int) -> float:
        """How long the GPU takes alone for the last step of so many sequences, which was captured:
        every answer is there before it asks. For measuring; the tokens' rows in the cache are
        overwritten.
        """
        return self._alone(self._steps[num_sequences])

    def _num_hits(self, num_sequences: int) -> int:
        return num_sequences * self._config.num_experts_per_tok

    def _alone(self, step: "_Step") -> float:
        step.number[0] = self._handoff.begin()
        self._handoff.release()
        torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        step.graph.replay()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - started

    def _replay(self, step: "_Step", num_sequences: int) -> None:
        step.number[0] = self._handoff.begin()
        stream = torch.cuda.current_stream(self._device)
        try:
            step.graph.replay()
            self._handoff.serve(num_sequences)
        except BaseException:  # Ctrl-C too: a step that nobody answers would wait for ever
            self._handoff.release()
            stream.synchronize()
            raise
        stream.synchronize()

    def _measured_share(self, step: "_Step", num_sequences: int) -> float:
        """The one of 0/8 to 4/8 with which a step takes least: a core reads less than its part of
        what memory gives, and the bus is idle, so both together are faster. Tried and not computed
        from each one's rate, for both read the same memory (H200, 16 cores: such a share was 0.31
        or 0.43, and of 8 experts 2 were best), and in turns: one share after the other, 3 of 8 won.
        On random tokens that are nobody's.
        """
        generator = torch.Generator()
        least_s = dict.fromkeys((eighths / 8 for eighths in range(5)), math.inf)
        for _ in range(4):
            for share in least_s:
                step.h.normal_(generator=generator)
                step.bus_hits[0] = int(share * self._num_hits(num_sequences))
                started = time.perf_counter()
                self._replay(step, num_sequences)
                least_s[share] = min(least_s[share], time.perf_counter() - started)
        best = min(least_s, key=least_s.__getitem__)
        log.info("decode: %.0f%% of the experts are read over the bus", 100 * best)
        return best

    def _capture(self, num_sequences: int) -> "_Step":
        step = _Step(self._config, num_sequences, self._pool.num_pages)
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # compiles what was not yet, on tokens that are nobody's
                step.number[0] = self._handoff.begin()
                self._handoff.release()
                self._forward(step)
            side.synchronize()
            step.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(step.graph, pool=self._memory_pool, stream=side):
                self._forward(step)
        if self.bus_share is None:
            uses_bus = any(experts.on_bus for experts in self._experts)
            self.bus_share = self._measured_share(step, num_sequences) if uses_bus else 0.0
        log.info("captured decode of %d sequences", num_sequences)
        return step

    def _forward(self, step: "_Step") -> None:
        config, modules, device = self._config, self._modules, self._device
        h = step.h.to(device, non_blocking=True)  # [B, hidden]
        inputs = step.inputs.to(device, non_blocking=True)
        number, bus_hits, positions, lengths, block_table = step.split(inputs)
        at = DecodePositions(block_table, positions, lengths, self._inv_freq, self._rope_factor)
        added: torch.Tensor | None = None  # what h lacks yet
        owing: int | None = None  # the layer whose deferred experts are under way
        rows = slice(0, h.shape[0])
        for layer_idx in range(config.num_hidden_layers):
            name = f"model.layers.{layer_idx}"
            x = modules[f"{name}.input_layernorm"].after_adding(h, added)
            attended = self._attention(layer_idx, x, at)
            post_norm = modules[f"{name}.post_attention_layernorm"]
            if layer_idx < config.first_k_dense_replace:
                x = post_norm.after_adding(h, attended)
                added = modules[f"{name}.mlp"](x)
                continue
            handoff, moe_idx = self._handoff, layer_idx - config.first_k_dense_replace
            deferred = None if owing is None else handoff.take_deferred(owing, h, number)
            x = post_norm.after_adding(h, attended, handoff.x[rows])
            experts = modules[f"{name}.mlp.experts"]
            shape = handoff.weights[rows].shape
            gpu, late = experts.gpu_hits(shape, bus_hits), None
            if experts.deferred_experts:
                ids = torch.empty(shape, dtype=torch.int32, device=device)
                late = (ids, experts.deferred_experts)
            modules[f"{name}.mlp.gate"].publish(
                *(x, handoff.expert_ids[rows], handoff.weights[rows]),
                *(handoff.published(moe_idx), number, gpu, late),
            )
            shared = modules[f"{name}.mlp.shared_experts"](x)
            if gpu is not None:
                shared += experts.compute_hits(x, gpu)
            if deferred is not None:
                shared += deferred
            handoff.take_in(h, shared, moe_idx, number)
            added, owing = None, None
            if late is not None:
                handoff.defer(late[0], moe_idx, number)
                owing = moe_idx
        logits = modules["lm_head"](modules["model.norm"].after_adding(h, added))
        step.logits.copy_(logits, non_blocking=True)

    def _attention(self, layer_idx: int, x: torch.Tensor, at: DecodePositions) -> torch.Tensor:
        name, modules = f"model.layers.{layer_idx}.self_attn", self._modules
        q_a = modules[f"{name}.q_a_layernorm"](modules[f"{name}.q_a_proj"](x))
        attended = modules[name].decode(
            modules[f"{name}.q_b_proj"](q_a),
            modules[f"{name}.kv_a_proj_with_mqa"](x),
            modules[f"{name}.kv_a_layernorm"].constants,
            self._pool.pages[layer_idx],
            at,
        )
        return modules[f"{name}.o_proj"](attended)


class _Step:
    """Pinned inputs and outputs of one graph. `inputs`, in int32: the step's number, how many hits
    the GPU takes over the bus, positions, lengths, and a row of pages for each sequence.
    """

    graph: torch.cuda.CUDAGraph

    def __init__(self, config: K2Config, num_sequences: int, max_pages: int) -> None:
        self._shape = num_sequences, max_pages
        self.h = torch.zeros(num_sequences, config.hidden_size, pin_memory=True)
        self.logits = torch.zeros(num_sequences, config.vocab_size, pin_memory=True)
        size = 2 + num_sequences * (2 + max_pages)
        self.inputs = torch.zeros(size, dtype=torch.int32, pin_memory=True)
        parts = (part.numpy() for part in self.split(self.inputs))
        self.number, self.bus_hits, self.positions, self.lengths, self.block_table = parts
        self.positions[:] = -1

    def split(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of the number, bus hits, positions, lengths and block table."""
        count, max_pages = self._shape
        *parts, table = inputs.split([1, 1, count, count, count * max_pages])
        return *parts, table.view(count, max_pages)

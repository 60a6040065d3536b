"""The routed experts of a prompt on both sides at once: some on the CPU where they lie, others sent
to the GPU while it computes those that came before.

A few tokens run on the CPU alone, as in experts_cpu; where the crossover lies follows from measured
rates (prefill_split.py). Owns the order of work of one layer.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.expert_stream import ExpertStream, Place, register
from hybrid_k2.backends.experts_cpu import ExpertsCpu, ExpertsSlot
from hybrid_k2.backends.experts_resident import ResidentExperts
from hybrid_k2.backends.prefill_split import PrefillSplit
from hybrid_k2.backends.registry import stays_stored
from hybrid_k2.errors import PlanError
from hybrid_k2.quant.stored import StoredTensor

_FEWEST_TOKENS = 32  # below it not even the question pays
_COPY_BYTES_S = 40e9  # activations to the CPU and back


@dataclass(slots=True)
class HybridShared:
    """What the layers of one engine have in common.

    at_hand: experts that were sent before their layer began, and that layer.
    """

    stream: ExpertStream
    split: PrefillSplit
    cpu_thread: ThreadPoolExecutor
    layers: list["ExpertsHybrid"] = field(default_factory=list)
    at_hand: tuple["ExpertsHybrid | None", dict[int, Place]] = (None, {})


@dataclass(frozen=True, slots=True)
class HybridSlot:
    """A submitted prompt: its inputs on the GPU."""

    x: torch.Tensor
    expert_ids: torch.Tensor
    weights: torch.Tensor


class ExpertsHybrid(ExpertsCpu):
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cuda:0",
        stream_mb: int = 640,
        gpu_experts: int = 0,
    ) -> None:
        """stream_mb: VRAM for experts on their way, in 10^6 bytes, for all layers together.
        gpu_experts: of each layer that stay in VRAM; the CPU has them too.
        """
        super().__init__(tensors, context)
        self.gpu = torch.device(device)
        self._tensors = [tensors[name] for name in ("gate_proj", "up_proj", "down_proj")]
        self._num_experts, width, hidden = self._tensors[0].shape
        self._bytes = [t.as_torch().view(self._num_experts, -1) for t in self._tensors]
        expert_bytes = sum(part.shape[1] for part in self._bytes)
        self._can_stream = np.zeros(self._num_experts, bool)
        if all(stays_stored(tensor.quant.name) for tensor in self._tensors):
            self._can_stream = _registered_experts(self._tensors)
        key = f"experts_hybrid {device}"
        if key not in context.shared:
            context.shared[key] = HybridShared(
                ExpertStream(self.gpu, expert_bytes, stream_mb * 10**6),
                PrefillSplit(expert_bytes, 3 * width * hidden),
                ThreadPoolExecutor(1, "experts-cpu"),
            )
        self._shared: HybridShared = context.shared[key]
        self._layer = len(self._shared.layers)
        self._shared.layers.append(self)
        self._hottest = np.flatnonzero(self._can_stream)  # first those with most tokens last time
        self.resident: ResidentExperts | None = None
        if gpu_experts and self._can_stream.any():
            if self._tensors[0].quant is not self._tensors[1].quant:
                raise PlanError("gpu_experts: gate and up are of different types; leave it out")
            self.resident = ResidentExperts(self._tensors, gpu_experts, self.gpu)
            for expert in self._hottest[:gpu_experts].tolist():  # until a prompt was counted
                self.resident.adopt(expert, [part[expert] for part in self._bytes])

    def submit(
        self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> ExpertsSlot | HybridSlot:
        if x.shape[0] < _FEWEST_TOKENS or x.device != self.gpu or not self._can_stream.any():
            return super().submit(x, expert_ids, weights)
        return HybridSlot(x, expert_ids, weights)

    def sync(self, slot: ExpertsSlot | HybridSlot) -> torch.Tensor:
        """Computes the slot; returns [T, hidden] float32 on the device that x came from."""
        if isinstance(slot, ExpertsSlot):
            return super().sync(slot)
        expert_ids = slot.expert_ids.cpu()
        counts = np.bincount(expert_ids.flatten().numpy() + 1, minlength=self._num_experts + 1)[1:]
        if self.resident is not None:
            self.resident.record(counts)
        at_hand = self._take_at_hand()
        there = {*at_hand, *(self.resident or ())}
        chosen = self._shared.split.choose(
            counts,
            can_stream=self._can_stream,
            cpu_extra_s=2 * slot.x.nbytes / _COPY_BYTES_S,
            at_hand=tuple(there),
        )
        if not chosen:
            return super().sync(super().submit(slot.x, expert_ids, slot.weights))
        x = _pinned_copy(slot.x)
        copied = torch.cuda.Event(blocking=True)
        copied.record()
        is_sent = np.zeros(self._num_experts, bool)
        is_sent[chosen] = True
        left = torch.where(torch.from_numpy(is_sent)[expert_ids.long()], -1, expert_ids)
        cpu = self._shared.cpu_thread.submit(self._on_cpu, x, copied, left, slot.weights.cpu())
        try:
            y = self._on_gpu(slot, chosen, counts, at_hand)
            if len(chosen) > self._shared.stream.num_places:
                self._send_ahead(counts)
        finally:
            cpu.exception()  # its memory is in use until it ends
        return self._joined(y, cpu, counts, is_sent)

    def hits(
        self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """What the experts in VRAM add for a few tokens, [T, hidden] float32; can be captured.

        All on the GPU; expert_ids may name any, those that are not there are skipped.
        """
        from hybrid_k2.kernels.experts import grouped_experts

        return grouped_experts(x, expert_ids, weights, self.resident.table)

    def _on_cpu(
        self, x: torch.Tensor, copied: torch.cuda.Event, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """[T, hidden] in pinned memory, and the seconds that it took."""
        copied.synchronize()
        y = torch.empty(x.shape, pin_memory=True)
        started = time.perf_counter()
        self.kernels.moe(*self.matrices, x, ids, weights, out=y)
        return y, time.perf_counter() - started

    def _take_at_hand(self) -> dict[int, Place]:
        """Experts of this layer that were sent ahead; those of another are given up."""
        layer, places = self._shared.at_hand
        self._shared.at_hand = (None, {})
        return places if layer is self else {}

    def _send_ahead(self, counts: np.ndarray) -> None:
        """Fills the ring with experts of the next layer, so that the bus works during attention."""
        order = np.argsort(-counts, kind="stable")
        self._hottest = order[self._can_stream[order]]
        if self._layer + 1 == len(self._shared.layers):
            return
        following, stream = self._shared.layers[self._layer + 1], self._shared.stream
        experts = following._hottest[: stream.num_places].tolist()
        places = {e: stream.send([part[e] for part in following._bytes]) for e in experts}
        self._shared.at_hand = (following, places)

    def _on_gpu(
        self, slot: HybridSlot, chosen: list[int], counts: np.ndarray, at_hand: dict[int, Place]
    ) -> torch.Tensor:
        """Sends the chosen experts and computes each once it is there."""
        stream, top_k = self._shared.stream, slot.expert_ids.shape[1]
        order = slot.expert_ids.flatten().argsort(stable=True)
        ends = counts.cumsum() + (slot.expert_ids.numel() - counts.sum())  # -1 sorts first
        tokens = order // top_k
        weights = slot.weights.flatten()[order, None]
        x = slot.x.to(torch.bfloat16)
        y = torch.zeros_like(slot.x)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        num_sent = 0
        for expert in chosen:
            rows = slice(int(ends[expert] - counts[expert]), int(ends[expert]))
            if self.resident is not None and expert in self.resident:
                out = self._expert(self.resident.parts(expert), x[tokens[rows]])
            else:
                place = at_hand.pop(expert, None)
                if place is None:
                    place = stream.send([part[expert] for part in self._bytes])
                    num_sent += 1
                parts = stream.take(place).split([part.shape[1] for part in self._bytes])
                out = self._expert(parts, x[tokens[rows]])
                if self.resident is not None and self.resident.wants(expert):
                    self.resident.adopt(expert, parts)
                stream.give_back(place)
            y.index_add_(0, tokens[rows], out * weights[rows])
        ended.record()
        ended.synchronize()
        num_tokens = int(counts[chosen].sum())
        self._shared.split.gpu.learn(num_sent, num_tokens, began.elapsed_time(ended) / 1e3)
        return y

    def _joined(
        self,
        y: torch.Tensor,
        cpu: "Future[tuple[torch.Tensor, float]]",
        counts: np.ndarray,
        is_sent: np.ndarray,
    ) -> torch.Tensor:
        cpu_y, seconds = cpu.result()
        self._shared.split.cpu.learn(
            np.count_nonzero(counts[~is_sent]), int(counts[~is_sent].sum()), seconds
        )
        return y.add_(cpu_y.to(y.device, non_blocking=True))

    def _expert(self, parts: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """One expert's tokens through it, [t, hidden] bfloat16 there and back."""
        from hybrid_k2.kernels.activation import silu_multiply
        from hybrid_k2.kernels.dequantise import dequantise
        from hybrid_k2.kernels.matrix import over_blocks

        gate, up, down = (
            dequantise(over_blocks(blocks, tensor.quant, tensor.shape[1:]))
            for blocks, tensor in zip(parts, self._tensors, strict=True)
        )
        gate_up = torch.cat([F.linear(x, gate), F.linear(x, up)], dim=-1)
        return F.linear(silu_multiply(gate_up), down)


def _registered_experts(tensors: list[StoredTensor]) -> np.ndarray:
    """[E] bool: experts that the GPU can read in place, all but those at the edges of a page."""
    can_stream = np.ones(tensors[0].shape[0], bool)
    for tensor in tensors:
        part = register(tensor.data)
        if part is None:
            return np.zeros_like(can_stream)
        expert_bytes = tensor.num_bytes // len(can_stream)
        first = part.ctypes.data - tensor.data.ctypes.data
        starts = np.arange(len(can_stream)) * expert_bytes
        can_stream &= (starts >= first) & (starts + expert_bytes <= first + part.nbytes)
    return can_stream


def _pinned_copy(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

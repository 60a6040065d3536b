"""The routed experts of a prompt on both sides at once: some on the CPU where they lie, others sent
to the GPU while it computes those that came before.

A few tokens run on the CPU alone, as in experts_cpu; where the crossover lies follows from measured
costs (prefill_split.py). The bus does not rest between layers: while the CPU ends one and attention
of the next runs, experts of the next are sent ahead. Owns the order of work of one layer.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.expert_groups import GROUP, ExpertGroups
from hybrid_k2.backends.expert_stream import ExpertStream, Place, register
from hybrid_k2.backends.experts_cpu import ExpertsCpu, ExpertsSlot
from hybrid_k2.backends.experts_resident import ResidentExperts
from hybrid_k2.backends.footprint import experts_that_fit
from hybrid_k2.backends.prefill_split import PrefillSplit
from hybrid_k2.backends.registry import stays_stored
from hybrid_k2.backends.routing_statistics import SHARED_KEY, RoutingStatistics
from hybrid_k2.backends.vram import launching_on
from hybrid_k2.errors import PlanError
from hybrid_k2.quant.stored import StoredTensor

if TYPE_CHECKING:
    from hybrid_k2.kernels.expert_table import ExpertTable
    from hybrid_k2.kernels.handoff import GpuHits

log = logging.getLogger(__name__)

_FEWEST_TOKENS = 32  # below it not even the question pays
_TIMES = 64  # of prompts' steps are kept for whoever measures
_AHEAD_FROM = 0.8  # of the experts have tokens: then whatever is sent ahead is of use


@dataclass(frozen=True, slots=True)
class Sent:
    """A group of experts on its way to the GPU, or there."""

    experts: list[int]
    place: Place


@dataclass(slots=True)
class HybridShared:
    """What the layers of one engine have in common.

    ahead: groups that were sent before their layer began, and that layer.
    """

    stream: ExpertStream
    split: PrefillSplit
    cpu_thread: ThreadPoolExecutor
    layers: list["ExpertsHybrid"] = field(default_factory=list)
    ahead: tuple["ExpertsHybrid | None", list[Sent]] = (None, [])


@dataclass(frozen=True, slots=True)
class HybridSlot:
    """A submitted prompt: its inputs on the GPU, and on their way to host memory."""

    x: torch.Tensor
    expert_ids: torch.Tensor
    weights: torch.Tensor
    on_host: ExpertsSlot


@dataclass(frozen=True, slots=True)
class GpuWork:
    """What the GPU does of a layer, in this order: experts that stay there, groups that were sent
    ahead (of which `late` experts are not there yet), groups to send.
    """

    resident: list[int]
    ahead: list[Sent]
    to_send: list[list[int]]
    late: list[int]

    @property
    def batches(self) -> list[list[int]]:
        """All experts, as they are computed together."""
        return [*([e] for e in self.resident), *(g.experts for g in self.ahead), *self.to_send]

    @property
    def experts(self) -> list[int]:
        return [expert for batch in self.batches for expert in batch]


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """When a prompt got where in one layer, by time.perf_counter, and who had how many experts.

    routed: the host knows the experts.  copied: and has the activations.  cpu_ended, gpu_ended:
    each side's experts.  num_ahead: of num_on_gpu, sent before the layer began.
    """

    routed: float
    copied: float
    cpu_ended: float
    gpu_ended: float
    num_on_cpu: int
    num_on_gpu: int
    num_ahead: int


class ExpertsHybrid(ExpertsCpu):
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        context: BackendContext,
        device: str = "cuda:0",
        stream_mb: int = 1000,
        gpu_experts: int = 0,
        gpu_experts_mb: int = 0,
        over_bus: bool = True,
        deferred_experts: int = 0,
    ) -> None:
        """stream_mb: VRAM for experts on their way, in 10^6 bytes, for all layers together.
        gpu_experts: of each layer that stay in VRAM, those that prompts use most; the CPU has them
        too.  gpu_experts_mb: VRAM for them in all layers together, if that is more.  over_bus: of a
        captured step the GPU may compute some where they lie in host memory.  deferred_experts: as
        in ExpertsCpu.
        """
        super().__init__(tensors, context, deferred_experts)
        self.gpu = torch.device(device)
        matrices = [tensors[name] for name in ("gate_proj", "up_proj", "down_proj")]
        self._num_experts, width, hidden = matrices[0].shape
        self._groups = ExpertGroups(matrices)
        expert_bytes = sum(tensor.num_bytes for tensor in matrices) // self._num_experts
        parts = None
        if all(stays_stored(tensor.quant.name) for tensor in matrices):
            with launching_on(self.gpu):
                parts = _registered_parts(matrices)
        self._can_stream = np.full(self._num_experts, parts is not None)
        for tensor, part in zip(matrices, parts or (), strict=False):
            self._can_stream &= _starts(tensor, part) >= 0
        key = f"experts_hybrid {device}"
        if key not in context.shared:
            context.shared[key] = HybridShared(
                ExpertStream(self.gpu, stream_mb * 10**6),
                PrefillSplit(expert_bytes, 3 * width * hidden),
                ThreadPoolExecutor(1, "experts-cpu"),
            )
        self._shared: HybridShared = context.shared[key]
        self._shared.stream.fit(self._groups.place_bytes)
        self._layer = len(self._shared.layers)
        self._shared.layers.append(self)
        self._statistics: RoutingStatistics = context.shared.setdefault(
            SHARED_KEY, RoutingStatistics(self._num_experts)
        )
        self._layer_idx = context.layer_idx
        counts = self._statistics.counts(self._layer_idx)
        self._note_hottest(counts)
        self.times: deque[SplitTimes] = deque(maxlen=_TIMES)
        self.resident: ResidentExperts | None = None
        if gpu_experts_mb:
            fitting = experts_that_fit(gpu_experts_mb, expert_bytes, context.config)
            gpu_experts = max(gpu_experts, fitting)
        if gpu_experts and self._can_stream.any():
            if matrices[0].quant is not matrices[1].quant:
                raise PlanError("gpu_experts: gate and up are of different types; leave it out")
            self.resident = ResidentExperts(matrices, gpu_experts, self.gpu, counts)
            for expert in self._hottest[:gpu_experts].tolist():
                self.resident.adopt(expert, self._groups.stored(expert))
        self.on_bus = None
        if over_bus and self._can_stream.any():
            self.on_bus = _in_host_memory(matrices, parts, self._can_stream, self.gpu)

    def submit(
        self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> ExpertsSlot | HybridSlot:
        on_host = super().submit(x, expert_ids, weights)
        if x.shape[0] < _FEWEST_TOKENS or x.device != self.gpu or not self._can_stream.any():
            return on_host
        return HybridSlot(x, expert_ids, weights, on_host)

    def sync(
        self, slot: ExpertsSlot | HybridSlot, shared: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(slot, ExpertsSlot):
            return super().sync(slot, shared)
        with launching_on(self.gpu):
            y = self._on_both(slot)
        return y if shared is None else shared.add_(y.to(shared.device))

    def gpu_hits(self, shape: tuple[int, ...], bus_hits: torch.Tensor) -> "GpuHits | None":
        if self.resident is None and self.on_bus is None:
            return None
        from hybrid_k2.kernels.handoff import GpuHits

        tables = (self.resident and self.resident.table, self.on_bus)
        resident, bus = (
            table and (table.gate.offsets, torch.empty(shape, dtype=torch.int32, device=self.gpu))
            for table in tables
        )
        return GpuHits(torch.empty(shape, device=self.gpu), resident, bus, bus_hits)

    def compute_hits(self, x: torch.Tensor, hits: "GpuHits") -> torch.Tensor:
        """What the GPU's part of a step adds, [T, hidden] float32; can be captured."""
        from hybrid_k2.kernels.experts import grouped_experts

        y = None
        if hits.resident is not None:
            y = grouped_experts(x, hits.resident[1], hits.weights, self.resident.table)
        if hits.bus is not None:
            of_bus = grouped_experts(x, hits.bus[1], hits.weights, self.on_bus)
            y = of_bus if y is None else y.add_(of_bus)
        return y

    def _on_both(self, slot: HybridSlot) -> torch.Tensor:
        slot.on_host.routed.synchronize()
        routed = time.perf_counter()
        ids = slot.on_host.expert_ids.numpy()
        counts = np.bincount(ids.ravel() + 1, minlength=self._num_experts + 1)[1:]
        self._statistics.record(self._layer_idx, counts)
        work = self._share_out(counts, slot.x.nbytes)
        on_cpu = counts.copy()
        on_cpu[work.experts] = 0
        ids = np.where(on_cpu[ids] > 0, ids, -1)  # -1 stays what it is, whoever has the last expert
        cpu = self._shared.cpu_thread.submit(self._on_cpu, slot.on_host, ids)
        try:
            y = self._on_gpu(slot, work, counts)
        except BaseException:
            cpu.exception()  # waits: its memory is in use until it ends
            raise
        gpu_ended = time.perf_counter()
        ahead = deque(self._groups_ahead(counts, work))
        self._send_ahead(ahead, until=cpu.done)
        cpu_y, copied, cpu_ended = cpu.result()
        cpu_y = cpu_y.to(self.gpu, non_blocking=True)
        self._shared.stream.let_pass()
        self._send_ahead(ahead)
        self._shared.split.cpu.learn(on_cpu, cpu_ended - copied)
        self._shared.split.copied(slot.x.nbytes, copied - routed)
        times = SplitTimes(
            *(routed, copied, cpu_ended, gpu_ended),
            num_on_cpu=int(np.count_nonzero(on_cpu)),
            num_on_gpu=len(work.experts),
            num_ahead=sum(len(group.experts) for group in work.ahead),
        )
        self.times.append(times)
        return cpu_y if y is None else y.add_(cpu_y)

    def _share_out(self, counts: np.ndarray, x_bytes: int) -> GpuWork:
        """What the GPU does, so that both sides end together; the rest is the CPU's."""
        layer, ahead = self._shared.ahead
        self._shared.ahead = (None, [])
        if layer is not self:  # a step was broken off
            for group in ahead:
                self._shared.stream.give_back(group.place)
            ahead = []
        at_hand = [e for group in ahead for e in group.experts]
        late = [e for group in ahead if not group.place.arrived.query() for e in group.experts]
        resident = list(self.resident or ())
        split = self._shared.split
        chosen = split.choose(
            counts,
            can_stream=self._can_stream,
            cpu_extra_s=2 * split.copy_s(x_bytes),
            at_hand=(*resident, *at_hand),
            gpu_busy_s=len(late) * split.gpu.least_s,
        )
        there = {*resident, *at_hand}
        new = [expert for expert in chosen if expert not in there]
        to_send = [new[i : i + GROUP] for i in range(0, len(new), GROUP)]
        return GpuWork([e for e in resident if counts[e]], ahead, to_send, late)

    def _on_cpu(self, on_host: ExpertsSlot, ids: np.ndarray) -> tuple[torch.Tensor, float, float]:
        """[T, hidden] in pinned memory; when its inputs were there, and when it was."""
        on_host.copied.synchronize()
        copied = time.perf_counter()
        y = torch.empty(on_host.x.shape, pin_memory=True)
        self.kernels.moe(*self.matrices, on_host.x, torch.from_numpy(ids), on_host.weights, out=y)
        return y, copied, time.perf_counter()

    def _on_gpu(self, slot: HybridSlot, work: GpuWork, counts: np.ndarray) -> torch.Tensor | None:
        """Sends what is to be sent, computes each group once it is there; waits for the last."""
        if not work.experts:
            return None
        from hybrid_k2.kernels.host_memory import fetch

        stream, groups = self._shared.stream, self._groups
        ranks = self._ranks(work.experts)  # here until the GPU is done
        tokens, weights = self._hits_in_order(slot, fetch(ranks, self.gpu))
        x = slot.x.to(torch.bfloat16)
        y = torch.zeros_like(slot.x)
        to_send, on_way = deque(work.to_send), deque(work.ahead)
        began, ended = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        began.record()
        first = 0
        try:
            for i, experts in enumerate(work.batches):
                while to_send and stream.has_room():
                    on_way.append(self._send(to_send.popleft()))
                num_tokens = counts[experts].tolist()
                rows = slice(first, first + sum(num_tokens))
                first = rows.stop
                if i < len(work.resident):
                    blocks, place = groups.joined(self.resident.parts(experts[0])), None
                else:
                    if not on_way:
                        on_way.append(self._send(to_send.popleft()))
                    place = on_way[0].place
                    blocks = groups.in_place(stream.take(place), len(experts))
                out = groups(blocks, num_tokens, x[tokens[rows]])
                y.index_add_(0, tokens[rows], out * weights[rows])
                if place is not None:
                    self._adopt(experts, place)
                    stream.give_back(on_way.popleft().place)
        finally:
            for group in on_way:  # of a step that fails
                stream.give_back(group.place)
        ended.record()
        ended.synchronize()
        sent = [*work.late, *(expert for group in work.to_send for expert in group)]
        self._shared.split.gpu.learn(counts[sent], began.elapsed_time(ended) / 1e3)
        return y

    def _ranks(self, experts: Sequence[int]) -> torch.Tensor:
        """[E + 1] in pinned memory: each expert's place in this order, others' behind; the last is
        for the id -1.
        """
        ranks = torch.empty(self._num_experts + 1, dtype=torch.int32, pin_memory=True)
        ranks.fill_(len(experts))
        ranks[list(experts)] = torch.arange(len(experts), dtype=torch.int32)
        return ranks

    def _hits_in_order(
        self, slot: HybridSlot, ranks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of each expert in turn, and their weights [hits, 1]; hits of others follow."""
        order = ranks[slot.expert_ids.flatten().long()].argsort(stable=True)
        return order // slot.expert_ids.shape[1], slot.weights.flatten()[order, None]

    def _send(self, experts: list[int]) -> Sent:
        return Sent(experts, self._shared.stream.send(self._groups.pieces(experts)))

    def _groups_ahead(self, counts: np.ndarray, work: GpuWork) -> list[list[int]]:
        """Experts that the next layer will want: as many as this one did, or as the ring holds."""
        self._note_hottest(counts)
        is_last = self._layer + 1 == len(self._shared.layers)
        if is_last or np.count_nonzero(counts) < _AHEAD_FROM * len(counts):
            return []
        following = self._shared.layers[self._layer + 1]
        resident = following.resident or ()
        num_groups = min(len(work.ahead) + len(work.to_send), self._shared.stream.num_places)
        experts = [e for e in following._hottest.tolist() if e not in resident]
        experts = experts[: num_groups * GROUP]
        self._shared.ahead = (following, [])
        return [experts[i : i + GROUP] for i in range(0, len(experts), GROUP)]

    def _note_hottest(self, counts: np.ndarray) -> None:
        order = np.argsort(-counts, kind="stable")
        self._hottest = order[self._can_stream[order]]

    def _send_ahead(
        self, groups: deque[list[int]], until: Callable[[], bool] | None = None
    ) -> None:
        """Sends groups of the next layer, so that the bus works until that layer knows which it
        wants. Until the CPU's answer is there, no more than two at a time: it would queue behind.
        """
        following, sent = self._shared.ahead
        while groups and not (until and until()):
            sent.append(following._send(groups.popleft()))
            if until and len(sent) > 1:
                sent[-2].place.arrived.synchronize()

    def _adopt(self, experts: Sequence[int], place: Place) -> None:
        """Keeps those of a place's experts that are used more than some that stay in VRAM."""
        if self.resident is None:
            return
        for index, expert in enumerate(experts):
            if self.resident.wants(expert):
                self.resident.adopt(expert, self._groups.parts(place.data, index))


def _registered_parts(tensors: list[StoredTensor]) -> list[np.ndarray] | None:
    """Of each tensor's bytes the whole pages, which the GPU can read in place; None where it cannot
    read those of one.
    """
    parts = [register(tensor.data) for tensor in tensors]
    return None if any(part is None for part in parts) else parts


def _starts(tensor: StoredTensor, part: np.ndarray) -> np.ndarray:
    """int64 [E]: where in `part` an expert's bytes begin, -1 where they are not all in it."""
    num_experts = tensor.shape[0]
    expert_bytes = tensor.num_bytes // num_experts
    starts = np.arange(num_experts) * expert_bytes - _first(tensor, part)
    return np.where((starts >= 0) & (starts + expert_bytes <= part.nbytes), starts, -1)


def _first(tensor: StoredTensor, part: np.ndarray) -> int:
    return part.ctypes.data - tensor.data.ctypes.data


def _in_host_memory(
    tensors: list[StoredTensor],
    parts: list[np.ndarray],
    can_stream: np.ndarray,
    device: torch.device,
) -> "ExpertTable | None":
    """A table of the experts where they lie in registered memory, which kernels on the device can
    read over the bus; None where they cannot (logged).
    """
    from hybrid_k2.kernels.expert_table import ExpertMatrix, ExpertTable

    starts = [_starts(tensor, part) for tensor, part in zip(tensors, parts, strict=True)]
    if tensors[0].quant is not tensors[1].quant or any((s[can_stream] % 16).any() for s in starts):
        log.info("decode: the GPU cannot read these experts in place: all are the CPU's")
        return None
    matrices = []
    for tensor, part, start in zip(tensors, parts, starts, strict=True):
        offsets = torch.from_numpy(np.where(can_stream, start, -1)).to(device)
        first = _first(tensor, part)  # a kernel's pointer must be registered itself
        data = tensor.as_torch()[first : first + part.nbytes]
        matrices.append(ExpertMatrix(data, tensor.quant, tensor.shape[1:], offsets))
    return ExpertTable(*matrices)

"""One layer of routed experts at true width on this machine: time, and what bounds it.

Every run routes at random over all experts, so that decoding reads weights from memory and not from
a cache. The machine's own read bandwidth is measured by the same threads in the same call, because
absolute times mean little on a shared machine. Knows no model files.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybrid_k2 import _cpu
from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import NativeKernels
from hybrid_k2.backends.weight_memory import allocate
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.quant import by_name
from hybrid_k2.quant.random_blocks import random_blocks
from hybrid_k2.quant.stored import StoredTensor

BANDWIDTH_BYTES = 2 << 30  # far beyond any cache


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer of experts; the defaults are Kimi K2's."""

    hidden_size: int = 7168
    width: int = 2048
    num_experts: int = 384
    experts_per_token: int = 8


@dataclass(frozen=True, slots=True)
class ExpertsResult:
    """One row. bytes_read: stored bytes of the distinct experts used, median over the runs.

    read_gb_s: the machine's read bandwidth, measured beside this row.
    """

    quant: str
    tier: str
    threads: int
    tokens: int
    runs: int
    median_ms: float
    min_ms: float
    bytes_read: int
    read_gb_s: float
    tflops: float

    @property
    def gb_s(self) -> float:
        """Weight bytes read per second, in units of 10^9."""
        return self.bytes_read / self.median_ms / 1e6

    @property
    def share(self) -> float:
        """Of the read bandwidth; above 1 where a batch finds weights in a cache."""
        return self.gb_s / self.read_gb_s


def experts_bytes(quant: str, shape: LayerShape) -> int:
    """Stored bytes of the whole layer."""
    weights = 3 * shape.hidden_size * shape.width * shape.num_experts
    return by_name(quant).num_bytes(weights)


def measure_experts(
    quant: str,
    batches: Sequence[int],
    shape: LayerShape,
    runtime: RuntimeConfig,
    *,
    seconds: float = 2.0,
    huge_pages: bool = True,
) -> Iterator[ExpertsResult]:
    """Yields a row for each number of tokens; a row takes about `seconds` and at least 3 runs."""
    kernels = NativeKernels(_cpu, runtime)
    rng = np.random.Generator(np.random.SFC64(1))
    tensors = {
        "gate_proj": _synthetic(rng, quant, shape, shape.width, shape.hidden_size, huge_pages),
        "up_proj": _synthetic(rng, quant, shape, shape.width, shape.hidden_size, huge_pages),
        "down_proj": _synthetic(rng, quant, shape, shape.hidden_size, shape.width, huge_pages),
    }
    context = BackendContext(_config(shape), runtime, kernels)
    experts = registry.create("experts_cpu", "Experts", tensors, context)
    expert_bytes = experts_bytes(quant, shape) // shape.num_experts
    for num_tokens in batches:
        read_gb_s = kernels.read_bandwidth(BANDWIDTH_BYTES, repeats=3)
        times, distinct = [], []
        x = torch.randn(num_tokens, shape.hidden_size)
        weights = torch.full((num_tokens, shape.experts_per_token), 1 / shape.experts_per_token)
        spent = 0.0
        while len(times) < 4 or spent < seconds:
            ids = _routing(rng, num_tokens, shape)
            started = time.perf_counter()
            experts.sync(experts.submit(x, ids, weights))
            times.append(time.perf_counter() - started)
            distinct.append(len(ids.unique()))
            spent += times[-1]
        median_s = statistics.median(times[1:])  # the first run sizes the scratch memory
        flops = 6 * num_tokens * shape.experts_per_token * shape.hidden_size * shape.width
        yield ExpertsResult(
            quant=quant,
            tier=kernels.tier,
            threads=runtime.resolved_threads,
            tokens=num_tokens,
            runs=len(times) - 1,
            median_ms=1e3 * median_s,
            min_ms=1e3 * min(times[1:]),
            bytes_read=int(statistics.median(distinct[1:])) * expert_bytes,
            read_gb_s=read_gb_s,
            tflops=flops / median_s / 1e12,
        )


def _synthetic(
    rng: np.random.Generator,
    quant: str,
    shape: LayerShape,
    rows: int,
    cols: int,
    huge_pages: bool,
) -> StoredTensor:
    """Random experts in anonymous memory. All hold the same bits, which no cache can tell."""
    form = by_name(quant)
    expert_bytes = form.num_bytes(rows * cols)
    pages = registry.RAM_HUGE if huge_pages else registry.RAM
    data = allocate(shape.num_experts * expert_bytes, pages)
    blocks = random_blocks(rng, form, rows * cols // form.block_size, cols**-0.5)
    data.reshape(shape.num_experts, -1)[:] = blocks.reshape(1, -1)
    return StoredTensor("synthetic", form, (shape.num_experts, rows, cols), data)


def _routing(rng: np.random.Generator, num_tokens: int, shape: LayerShape) -> torch.Tensor:
    """Distinct random experts for each token: [tokens, K] int32."""
    keys = rng.random((num_tokens, shape.num_experts), np.float32)
    chosen = keys.argpartition(shape.experts_per_token - 1, axis=1)[:, : shape.experts_per_token]
    return torch.from_numpy(np.ascontiguousarray(chosen, np.int32))


def _config(shape: LayerShape) -> K2Config:
    """A K2 around the layer; only the experts' sizes matter here."""
    return K2Config(
        vocab_size=32,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.width,
        moe_intermediate_size=shape.width,
        num_hidden_layers=1,
        first_k_dense_replace=0,
        n_routed_experts=shape.num_experts,
        n_shared_experts=1,
        num_experts_per_tok=shape.experts_per_token,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
        num_attention_heads=1,
        q_lora_rank=None,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=32,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
    )

"""kt-kernel's routed experts (KTransformers): AMXINT4 and RAWINT4, without a GPU.

Owns the calls into its extension and the packing of weights for it. AMXINT4 is its fastest, with
one scale a row; RAWINT4 is K2-Thinking's own format, groups of 32, and uses no AMX tiles. Both are
made from one of our experts' weights, so outputs differ by what 4 bits lose. Knows no timing.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hybrid_k2.bench.layer import Inputs, Layer, LayerShape

GROUP = 32  # weights that share a scale in RAWINT4
NODES = Path("/sys/devices/system/node")


def open_engines(layer: Layer, num_threads: int, max_tokens: int) -> list["KtKernel"]:
    """Both methods. One thread fewer than ours: with all cores busy it is several times slower,
    since a thread of its own hands out the work.
    """
    threads = max(1, num_threads - 1)
    pool = _Pool(threads, layer.shape)
    weights = [tensor.dequantise(0).bfloat16() for tensor in (layer.gate, layer.up, layer.down)]
    engines = []
    for method, (bytes_per_weight, load) in METHODS.items():
        with _chatter_on_stderr():
            moe = load(pool, max_tokens, weights)
        expert_bytes = round(bytes_per_weight * layer.shape.expert_weights)
        engines.append(KtKernel(method, expert_bytes, threads, moe, pool))
    return engines


class KtKernel:
    """One of its methods for a layer that is loaded; bfloat16 in and out, as it wants them."""

    tier = "kt-kernel"

    def __init__(
        self, method: str, expert_bytes: int, threads: int, moe: Any, pool: "_Pool"
    ) -> None:
        self.quant, self.expert_bytes, self.threads = method, expert_bytes, threads
        self._moe, self._pool = moe, pool

    def prepare(self, inputs: Inputs) -> None:
        self._x = inputs.x.bfloat16()
        self._ids = inputs.ids.long()
        self._weights = inputs.weights
        self._y = torch.empty_like(self._x).fill_(0)  # pages that are there
        self._num_tokens = torch.tensor([len(self._x)], dtype=torch.int32)

    def compute(self) -> None:
        task = self._moe.forward_task(
            self._num_tokens.data_ptr(),
            self._ids.shape[1],
            self._ids.data_ptr(),
            self._weights.data_ptr(),
            self._x.data_ptr(),
            self._y.data_ptr(),
            False,
        )
        self._pool.run(task)

    def output(self) -> torch.Tensor:
        return self._y.float()


class _Pool:
    """Its threads, spread over the NUMA nodes, of which each holds a part of every expert."""

    def __init__(self, threads: int, shape: LayerShape) -> None:
        self._shape = shape
        # All are on the CPU. Configurations keep its address.
        self._on_gpu = torch.zeros(shape.num_experts, dtype=torch.bool)
        with _chatter_on_stderr():
            from kt_kernel import kt_kernel_ext

            nodes = sorted(int(path.name[4:]) for path in NODES.glob("node[0-9]*")) or [0]
            nodes = nodes[:threads]
            config = kt_kernel_ext.WorkerPoolConfig()
            config.subpool_count = len(nodes)
            config.subpool_numa_map = nodes
            config.subpool_thread_count = [
                threads // len(nodes) + (i < threads % len(nodes)) for i in range(len(nodes))
            ]
            self.moe = kt_kernel_ext.moe
            self._threads = kt_kernel_ext.CPUInfer(config)

    def __del__(self) -> None:
        with _chatter_on_stderr():
            del self._threads

    def run(self, task: Any) -> None:
        """Returns when it is done."""
        self._threads.submit(task)
        self._threads.sync()

    def config(self, max_tokens: int) -> Any:
        """Of the layer, without its weights."""
        shape = self._shape
        config = self.moe.MOEConfig(
            shape.num_experts,
            shape.experts_per_token,
            shape.hidden_size,
            shape.width,
            self._on_gpu.data_ptr(),
        )
        config.pool = self._threads.backend_
        config.max_len = max(512, max_tokens)
        config.layer_idx = 0
        return config

    def load(self, moe: Any) -> Any:
        """Has it copy the weights, so that those it was given are free to go."""
        expert_of = torch.arange(self._shape.num_experts)
        self.run(moe.load_weights_task(expert_of.data_ptr()))
        return moe


def _amx_int4(pool: _Pool, max_tokens: int, weights: list[torch.Tensor]) -> Any:
    """It quantises bfloat16 weights itself and wants all experts', one behind the other."""
    config = pool.config(max_tokens)
    stacks = [w.expand(config.expert_num, -1, -1).contiguous() for w in weights]
    config.gate_proj, config.up_proj, config.down_proj = (stack.data_ptr() for stack in stacks)
    return pool.load(pool.moe.AMXInt4_MOE(config))


def _raw_int4(pool: _Pool, max_tokens: int, weights: list[torch.Tensor]) -> Any:
    config = pool.config(max_tokens)
    config.quant_config.bits = 4
    config.quant_config.group_size = GROUP
    config.quant_config.zero_point = False
    packed = [pack_int4(w) for w in weights]
    for name, (codes, scales) in zip(("gate", "up", "down"), packed, strict=True):
        setattr(config, f"{name}_projs", [[codes.data_ptr()] * config.expert_num])
        setattr(config, f"{name}_scales", [[scales.data_ptr()] * config.expert_num])
    return pool.load(pool.moe.AMXInt4_KGroup_MOE(config))


def pack_int4(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, cols] -> int32 [rows, cols / 8] of codes plus 8, the first in the lowest four bits,
    and bfloat16 [rows, cols / 32]: the compressed-tensors format of K2-Thinking.
    """
    rows, cols = weights.shape
    groups = weights.float().reshape(rows, cols // GROUP, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
    codes = (groups / scales.float().clamp(min=1e-30)).round().clamp(-8, 7).int() + 8
    words = codes.reshape(rows, cols // 8, 8) << torch.arange(0, 32, 4, dtype=torch.int32)
    return words.sum(-1, dtype=torch.int32), scales.reshape(rows, -1)


# Bytes a weight in memory (RAWINT4 widens its scales to float32), and how it is loaded.
METHODS = {"RAWINT4": (0.5 + 4 / GROUP, _raw_int4), "AMXINT4": (0.5, _amx_int4)}


@contextmanager
def _chatter_on_stderr() -> Iterator[None]:
    """It prints to the C library's standard output, which may be a table or JSON of ours."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(stdout, 1)
        os.close(stdout)

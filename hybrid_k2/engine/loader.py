"""From a plan to a model that can run: every module's backend, its weights in memory.

Owns the order of loading and its progress. Knows nothing of what backends do with their tensors.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import open_cpu_kernels
from hybrid_k2.config import K2Config, RuntimeConfig
from hybrid_k2.model.kimi_k2 import KimiK2

if TYPE_CHECKING:
    from hybrid_k2.rules import Plan

Progress = Callable[[str, int, int], None]  # (phase, done_bytes, total_bytes)

PAGE_BYTES = 4096
CHUNK_BYTES = 64 << 20  # read between two progress calls: under 0.1 s from an NVMe disk


def load_model(
    config: K2Config, plan: "Plan", runtime: RuntimeConfig, progress: Progress | None = None
) -> KimiK2:
    """Builds the planned backends, each once its bytes were read: no token waits for the disk.

    Weights stay where the file is mapped unless their backend copies them. An exception raised by
    `progress`, or Ctrl-C, ends loading within one chunk.
    """
    report = progress or (lambda phase, done_bytes, total_bytes: None)
    # Torch's idle threads spin between its operations and would take the kernels' cores: a token of
    # a small model took 2.4 times as long with them on 2 cores. Attention raises it where it pays.
    torch.set_num_threads(1)
    kernels = open_cpu_kernels(runtime)
    total_bytes = sum(entry.module.num_bytes for entry in plan.entries)
    done_bytes = 0
    modules = {}
    report("loading", 0, total_bytes)
    for entry in plan.entries:
        module = entry.module
        for tensor in module.tensors.values():
            for num_bytes in read_pages(tensor.data, CHUNK_BYTES):
                done_bytes += num_bytes
                report("loading", done_bytes, total_bytes)
        context = BackendContext(config, runtime, kernels, module.layer_idx)
        modules[module.name] = registry.create(
            entry.backend, module.module_class, module.tensors, context, entry.kwargs
        )
    return KimiK2(config, modules)


def read_pages(data: np.ndarray, chunk_bytes: int) -> Iterator[int]:
    """Reads one byte of each page of a mapped array; yields the bytes covered, by chunk.

    data: uint8 [num_bytes].
    """
    for start in range(0, len(data), chunk_bytes):
        chunk = data[start : start + chunk_bytes]
        chunk[::PAGE_BYTES].sum()
        yield len(chunk)

"""From a plan to a model that can run: every module's backend, its weights in memory.

Owns the order of loading, its progress, and where each module's bytes are put (`load:` of its
rule). Knows nothing of what backends do with their tensors, nor of how files are read.
"""

import hashlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybrid_k2.backends import registry
from hybrid_k2.backends.context import BackendContext
from hybrid_k2.backends.cpu_kernels import CpuKernels, open_cpu_kernels
from hybrid_k2.backends.routing_statistics import SHARED_KEY, RoutingStatistics
from hybrid_k2.backends.vram import hold_to
from hybrid_k2.backends.weight_memory import allocate
from hybrid_k2.checkpoint.bulk_read import BulkReader
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.engine.disk_cache import DiskCache
from hybrid_k2.engine.prefix_cache import PrefixCache
from hybrid_k2.model.kimi_k2 import KimiK2
from hybrid_k2.model.kv_cache import PagePool
from hybrid_k2.model.pages import PAGE_TOKENS
from hybrid_k2.quant.stored import StoredTensor

if TYPE_CHECKING:
    from hybrid_k2.checkpoint import Checkpoint
    from hybrid_k2.rules import Plan

_SAMPLE_BYTES = 4096

Progress = Callable[[str, int, int], None]  # (phase, done_bytes, total_bytes)
Tensors = Mapping[str, StoredTensor]


def load_model(
    checkpoint: "Checkpoint",
    plan: "Plan",
    runtime: RuntimeConfig,
    progress: Progress | None = None,
    routing: RoutingStatistics | None = None,
) -> KimiK2:
    """Builds the planned backends, each once its bytes were read: no token waits for the disk.

    Weights stay where the file is mapped unless their rule says `load: ram` or their backend copies
    them.  routing: decides which experts stay in VRAM, and counts for the next start.

    An exception raised by `progress`, or Ctrl-C, ends loading within a few chunks. Raises
    ModelFileError for a file that changed or cannot be read.
    """
    report = progress or (lambda phase, done_bytes, total_bytes: None)
    # Torch's idle threads spin between its operations and would take the kernels' cores: a token of
    # a small model took 2.4 times as long with them on 2 cores. Attention raises it where it pays.
    torch.set_num_threads(1)
    for device in plan.vram_bytes:
        hold_to(device, plan.vram_limits[device])
    kernels = open_cpu_kernels(runtime)
    total_bytes = sum(entry.module.num_bytes for entry in plan.entries)
    done_bytes = 0
    modules: dict[str, Any] = {}
    shared: dict[str, Any] = {} if routing is None else {SHARED_KEY: routing}

    def count(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        report("loading", done_bytes, total_bytes)

    report("loading", 0, total_bytes)
    try:
        with BulkReader(count) as reader:
            for entry in plan.entries:
                module, load = entry.module, entry.kwargs.get("load", registry.MMAP)
                context = BackendContext(
                    checkpoint.config, runtime, kernels, module.layer_idx, shared
                )
                modules[module.name] = registry.create(
                    entry.backend,
                    module.module_class,
                    _in_memory(reader, checkpoint, module.tensors, load, kernels),
                    context,
                    entry.kwargs,
                )
    except BaseException as error:
        modules.clear()  # half a model, which the traceback of whoever catches this would keep
        traceback.clear_frames(error.__traceback__)
        raise
    num_pages = plan.cache_tokens // PAGE_TOKENS
    return KimiK2(checkpoint.config, modules, num_pages, kernels.counters)


def open_prefix_cache(
    checkpoint: "Checkpoint", plan: "Plan", runtime: RuntimeConfig, pool: PagePool
) -> PrefixCache:
    """The tiers that the run asks for: disk with a cache directory, RAM for a pool on a GPU."""
    disk = None
    if runtime.cache_dir is not None:
        identity = {"model": model_identity(checkpoint, plan)}
        disk = DiskCache(
            Path(runtime.cache_dir),
            runtime.cache_quota_bytes,
            identity,
            pool,
            num_threads=runtime.resolved_threads,
        )
    is_on_gpu = any(pages.device.type != "cpu" for pages in pool.pages)
    return PrefixCache(pool, ram_bytes=runtime.cache_ram_bytes if is_on_gpu else 0, disk=disk)


def open_routing_statistics(
    checkpoint: "Checkpoint", plan: "Plan", runtime: RuntimeConfig
) -> RoutingStatistics | None:
    """Those in the cache directory; None without one. They are the model's, whatever the rules."""
    if runtime.cache_dir is None:
        return None
    digest = hashlib.sha256(repr(checkpoint.config).encode())
    for entry in plan.entries:
        if entry.module.module_class == "Router":
            for _, tensor in sorted(entry.module.tensors.items()):
                digest.update(tensor.data.reshape(-1)[:_SAMPLE_BYTES].tobytes())
    identity = digest.hexdigest()
    path = Path(runtime.cache_dir) / f"routing-{identity[:32]}.json"
    return RoutingStatistics(checkpoint.config.n_routed_experts, path, identity)


def model_identity(checkpoint: "Checkpoint", plan: "Plan") -> str:
    """A digest of what a KV page depends on besides tokens: shapes, weights, how they are run.

    Of each tensor the name, type and first bytes, not all 600 GB: two models whose tensors all
    begin alike do not occur.
    """
    digest = hashlib.sha256(repr(checkpoint.config).encode())
    for entry in plan.entries:
        settings = {k: v for k, v in entry.kwargs.items() if k not in ("load", "device")}
        digest.update(f"{entry.module.name} {entry.backend} {sorted(settings.items())}".encode())
        for key, tensor in sorted(entry.module.tensors.items()):
            digest.update(f"{key} {tensor.name} {tensor.quant.name} {tensor.shape}".encode())
            digest.update(tensor.data.reshape(-1)[:_SAMPLE_BYTES].tobytes())
    return digest.hexdigest()


def _in_memory(
    reader: BulkReader, checkpoint: "Checkpoint", tensors: Tensors, load: str, kernels: CpuKernels
) -> Tensors:
    """The tensors once their bytes are in memory: mapped as they are, or copies in their own."""
    extents = {key: checkpoint.locate(tensor) for key, tensor in tensors.items()}
    if load == registry.MMAP:
        reader.populate([(extents[key], tensor.data) for key, tensor in tensors.items()])
        return tensors
    memory = allocate(sum(extent.paged_bytes for extent in extents.values()), load)
    parts, copies, start = [], {}, 0
    for key, extent in extents.items():
        pages = memory[start : start + extent.paged_bytes]
        start += extent.paged_bytes
        parts.append((extent, pages))
        data = pages[extent.margin : extent.margin + extent.num_bytes]
        if len(tensors[key].shape) == 3:
            kernels.place(data, *tensors[key].shape[:2])
        data.flags.writeable = False
        copies[key] = replace(tensors[key], data=data)
    reader.read(parts)
    return copies

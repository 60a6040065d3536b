"""Holds this process to its share of a GPU's memory. Knows no modules: a device and a number."""

import torch

from hybrid_k2.backends.footprint import CUDA_CONTEXT_BYTES


def hold_to(device: str, limit_bytes: int) -> None:
    """Torch refuses to allocate beyond `limit_bytes` on the device, its context counted in.

    What is there already stays. A limit beyond the device's memory is none.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = (limit_bytes - CUDA_CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), device)

"""A GPU as torch sees it: which one work goes to, and how much of its memory this process may use.

Knows no modules: a device and a number.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from hybrid_k2.backends.footprint import CUDA_CONTEXT_BYTES


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Within, kernels, events and registered memory are this GPU's: unlike torch's own operations,
    they follow the current device and not the tensors. Nothing where the device is the CPU.
    """
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def hold_to(device: str, limit_bytes: int) -> None:
    """Torch refuses to allocate beyond `limit_bytes` on the device, its context counted in.

    What is there already stays. A limit beyond the device's memory is none.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = (limit_bytes - CUDA_CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), device)

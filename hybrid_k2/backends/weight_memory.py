"""Anonymous memory for weights, on huge pages if wanted.

Owns what `load: ram` and `ram+hugepages` allocate. Knows no files and no tensors; imports little,
because the plan counts with it before anything is loaded.
"""

import logging
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hybrid_k2.backends.registry import MMAP, RAM_HUGE
from hybrid_k2.errors import PlanError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20


def ram_bytes(tensor_bytes: Iterable[int], load: str) -> int:
    """The most that a module's tensors take under `load`, wherever they begin in their file.

    Each lies in whole pages; a module's memory is whole pages of the kind it is on.
    """
    if load == MMAP:
        return 0
    pages = sum(-(-num_bytes // PAGE_BYTES) + 1 for num_bytes in tensor_bytes if num_bytes)
    return _whole(pages * PAGE_BYTES, load)


def allocate(num_bytes: int, load: str) -> "np.ndarray":
    """uint8 [num_bytes] that starts at a huge page's boundary and was not touched yet.

    The memory is given back when the last array over it goes. Raises PlanError where the system
    has no room for it.
    """
    import numpy as np

    if num_bytes == 0:
        return np.empty(0, np.uint8)
    length = _whole(num_bytes, load)
    try:
        # Private: what is anonymous and shared would be tmpfs, whose huge pages are a setting apart
        memory = mmap.mmap(
            -1, length + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
    except (OSError, MemoryError, ValueError) as error:
        raise PlanError(
            f"{num_bytes / 1e9:.1f} GB of RAM for weights were refused ({error}); use load: mmap, "
            "or raise the limit (ulimit -v, vm.overcommit_memory)"
        ) from None
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE_BYTES
    if load == RAM_HUGE:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE, start, length)
        except OSError as error:
            log.warning("no huge pages for weights: %s; ordinary pages are used", error.strerror)
    return whole[start : start + num_bytes]


def _whole(num_bytes: int, load: str) -> int:
    unit = HUGE_PAGE_BYTES if load == RAM_HUGE else PAGE_BYTES
    return -(-num_bytes // unit) * unit

"""A small array from pinned host memory, by the GPU's own loads.

A copy engine serves one direction in order: behind experts on their way, the few bytes that a
layer waits for would take 20 ms. Launches one kernel; knows nothing of what it reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 256


@triton.jit
def _fetch(source, out, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = place < size
    # No cache of the GPU may answer for the host's memory.
    tl.store(out + place, tl.load(source + place, mask=here, cache_modifier=".cv"), mask=here)


def fetch(pinned: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device` of a contiguous pinned tensor, which must stay as it is until the GPU has
    read it: nobody records that it is in use.
    """
    out = torch.empty(pinned.shape, dtype=pinned.dtype, device=device)
    size = pinned.numel()
    _fetch[(triton.cdiv(size, _BLOCK),)](pinned, out, size, BLOCK=_BLOCK, num_warps=4)
    return out

"""Experts' bytes on their way to a GPU: a ring of places there, filled by a stream of its own.

Owns the ring and the registration of host memory, without which copies would neither be fast nor
run beside anything. One per GPU, shared by all layers. Knows bytes; not what they mean.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

log = logging.getLogger(__name__)

_PAGE_BYTES = 4096
_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly


@dataclass(slots=True)
class Place:
    """Room for one expert in VRAM. arrived: its bytes are there; free: they were used."""

    data: torch.Tensor
    arrived: torch.cuda.Event
    free: torch.cuda.Event


class ExpertStream:
    """`send` experts, in any order; `take` each before its bytes are used and `give_back` after."""

    def __init__(self, device: torch.device, expert_bytes: int, ring_bytes: int) -> None:
        """Takes ring_bytes of VRAM, and room for two experts at least."""
        self.device = device
        self._copies = torch.cuda.Stream(device)
        self._ring = [
            Place(
                torch.empty(expert_bytes, dtype=torch.uint8, device=device),
                torch.cuda.Event(),
                torch.cuda.Event(blocking=True),
            )
            for _ in range(max(2, ring_bytes // expert_bytes))
        ]
        self._next = 0

    @property
    def num_places(self) -> int:
        return len(self._ring)

    def has_room(self) -> bool:
        """True where `send` would not wait."""
        return self._ring[self._next].free.query()

    def send(self, parts: Sequence[torch.Tensor]) -> Place:
        """Starts copying an expert's parts, one behind the other; waits for a place where the ring
        is full, which it must not be with experts that nobody will give back.
        """
        place = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        place.free.synchronize()
        with torch.cuda.stream(self._copies):
            first = 0
            for part in parts:
                place.data[first : first + part.numel()].copy_(part, non_blocking=True)
                first += part.numel()
            place.arrived.record()
        return place

    def take(self, place: Place) -> torch.Tensor:
        """The bytes, uint8; the current stream waits until they are there."""
        torch.cuda.current_stream(self.device).wait_event(place.arrived)
        return place.data

    def give_back(self, place: Place) -> None:
        """What the current stream was given so far is the last use of the place."""
        place.free.record(torch.cuda.current_stream(self.device))


def register(data: np.ndarray) -> np.ndarray | None:
    """Makes host memory readable by the GPU in place: the whole pages inside `data`.

    Returns the registered part, None where the driver refused (logged). The memory must stay until
    the process ends. Registering 8 GiB of huge pages takes 0.3 s.
    """
    start = -data.ctypes.data % _PAGE_BYTES
    stop = start + (data.nbytes - start) // _PAGE_BYTES * _PAGE_BYTES
    if stop <= start:
        return None
    inside = data[start:stop]
    flags = 0 if data.flags.writeable else _REGISTER_READ_ONLY
    error = torch.cuda.cudart().cudaHostRegister(inside.ctypes.data, inside.nbytes, flags)
    if int(error) == 0:
        return inside
    log.warning("%.1f GB of weights stay out of the GPU's reach: %s", data.nbytes / 1e9, error)
    return None

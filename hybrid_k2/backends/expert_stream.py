"""Experts' bytes on their way to a GPU: a ring of places there, filled by a stream of its own.

Owns the ring and the registration of host memory, without which copies would neither be fast nor
run beside anything. One per GPU, shared by all layers. Knows bytes; not what they mean.
"""

import logging
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

log = logging.getLogger(__name__)

_PAGE_BYTES = 4096
_MOST_PLACES = 128  # more are of no use, and small experts would have tens of thousands
_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly


@dataclass(slots=True)
class Place:
    """Room for a group of experts in VRAM. arrived: its bytes are there; used: they were used, by
    all that the GPU had been told when the place was given back.
    """

    data: torch.Tensor
    arrived: torch.cuda.Event
    used: torch.cuda.Event
    is_given_back: bool = True


class ExpertStream:
    """`send` groups of experts; `take` each before its bytes are used and `give_back` after."""

    def __init__(self, device: torch.device, ring_bytes: int) -> None:
        """Takes ring_bytes of VRAM, and room for two groups at least."""
        self.device = device
        self._ring_bytes = ring_bytes
        self._copies = torch.cuda.Stream(device)
        self._ring: list[Place] = []
        self._next = 0

    def fit(self, place_bytes: int) -> None:
        """Has every place hold so many bytes at least; while nothing is on its way."""
        if self._ring and len(self._ring[0].data) >= place_bytes:
            return
        self._ring.clear()
        self._ring += [
            Place(
                torch.empty(place_bytes, dtype=torch.uint8, device=self.device),
                torch.cuda.Event(blocking=True),
                torch.cuda.Event(blocking=True),
            )
            for _ in range(min(max(2, self._ring_bytes // place_bytes), _MOST_PLACES))
        ]

    @property
    def num_places(self) -> int:
        return len(self._ring)

    def has_room(self) -> bool:
        """True where `send` would not wait."""
        place = self._ring[self._next]
        return place.is_given_back and place.used.query()

    def send(self, pieces: Iterable[tuple[int, torch.Tensor]]) -> Place:
        """Starts copying pieces, each to its offset in a place; waits where the GPU still uses it.
        No more groups may be on their way than there are places.
        """
        place = self._ring[self._next]
        assert place.is_given_back, "the ring is full"
        self._next = (self._next + 1) % len(self._ring)
        place.used.synchronize()
        place.is_given_back = False
        with torch.cuda.stream(self._copies):
            for first, piece in pieces:
                place.data[first : first + piece.numel()].copy_(piece, non_blocking=True)
            place.arrived.record()
        return place

    def let_pass(self) -> None:
        """What is sent from now on waits for the current stream's copies: a copy engine that has
        one stream's copies to do lets another's wait.
        """
        self._copies.wait_stream(torch.cuda.current_stream(self.device))

    def take(self, place: Place) -> torch.Tensor:
        """The bytes, uint8; the current stream waits until they are there."""
        torch.cuda.current_stream(self.device).wait_event(place.arrived)
        return place.data

    def give_back(self, place: Place) -> None:
        """What the current stream was given so far is the last use of the place."""
        place.used.record(torch.cuda.current_stream(self.device))
        place.is_given_back = True


def register(data: np.ndarray) -> np.ndarray | None:
    """Makes host memory readable by the GPU in place, as long as `data` lives: its whole pages.

    Returns the registered part, None where the driver refused (logged). Registering 8 GiB of huge
    pages takes 0.3 s.
    """
    start = -data.ctypes.data % _PAGE_BYTES
    stop = start + (data.nbytes - start) // _PAGE_BYTES * _PAGE_BYTES
    if stop <= start:
        return None
    inside = data[start:stop]
    flags = 0 if data.flags.writeable else _REGISTER_READ_ONLY
    runtime, address = torch.cuda.cudart(), inside.ctypes.data
    error = runtime.cudaHostRegister(address, inside.nbytes, flags)
    if int(error) == 0:
        # What is mapped there next would otherwise be read from the pages that were.
        weakref.finalize(data, runtime.cudaHostUnregister, address).atexit = False
        return inside
    log.warning("%.1f GB of weights stay out of the GPU's reach: %s", data.nbytes / 1e9, error)
    with suppress(RuntimeError):  # the next kernel reports the refusal as its own failure
        torch.zeros(1, device="cuda")
    return None

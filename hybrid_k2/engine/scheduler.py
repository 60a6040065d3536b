"""What runs in the next step: which sequences, how many tokens of each.

Owns the queue and the running set. Knows nothing of tensors, sampling or why a sequence ends.
"""

from collections import deque
from dataclasses import dataclass

from hybrid_k2.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` pending tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_decode(self) -> bool:
        """True for the token that was generated last, False for those of a prompt."""
        return self.num_tokens == 1 and self.sequence.num_generated > 0

    @property
    def needs_logits(self) -> bool:
        """True where the last pending token is among them, so that the step yields a token."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """First come, first served into `max_sequences` places; prompts in turn, one chunk a step.

    A step runs every sequence that decodes and one chunk of one prompt. Prompts take turns, so a
    short prompt waits for at most one chunk of each longer one, and no answer ever waits for more
    than a chunk. A prompt's last token runs with those that decode: its logits are then the same
    whether the tokens before it were computed in the step before or found in a cache.
    """

    def __init__(self, *, max_sequences: int, prefill_chunk: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._max_sequences = max_sequences
        self._prefill_chunk = prefill_chunk

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self.waiting.append(sequence)

    @property
    def next_waiting(self) -> Sequence | None:
        """The sequence to start next; None where none waits or no place is free."""
        has_place = len(self.running) < self._max_sequences
        return self.waiting[0] if self.waiting and has_place else None

    @property
    def next_reader(self) -> Sequence | None:
        """The sequence of which the next step reads a chunk of the prompt."""
        return next((sequence for sequence in self.running if sequence.num_pending > 1), None)

    def start(self, sequence: Sequence) -> None:
        """Moves next_waiting, which the caller has given a cache, into a free place."""
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Puts a running sequence back where it is the first to start again."""
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)

    def schedule(self, *, read: bool = True) -> list[Work]:
        """The next step's work; empty where nothing runs.

        read: False gives the prompt whose turn it is nothing; it has had its turn all the same.
        """
        decoding = [sequence for sequence in self.running if sequence.num_pending == 1]
        reading = [sequence for sequence in self.running if sequence.num_pending > 1]
        work = [Work(sequence, 1) for sequence in decoding]
        if reading:
            first, *others = reading
            if read:
                work.append(Work(first, min(first.num_pending - 1, self._prefill_chunk)))
            self.running = [*decoding, *others, first]
        return work

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, waiting or running; one that is neither is ignored."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

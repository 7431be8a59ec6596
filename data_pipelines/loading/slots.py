"""The places in shared memory that batches are loaded into, used again and again."""

import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.loading.shared_memory import SharedMemory


class SlotMemory:
    """A block of shared memory cut into equal slots; what workers see of a `SlotRing`."""

    def __init__(self, *, num_slots: int, slot_bytes: int) -> None:
        """Makes the memory."""
        self.num_slots = num_slots
        # Whole pages, so that no two slots share one.
        self.slot_bytes = -(-slot_bytes // 4096) * 4096
        self.shared = SharedMemory(self.num_slots * self.slot_bytes)

    def slot(self, number: int) -> NDArray[np.uint8]:
        """Returns the bytes of a slot, as a new view."""
        return self.shared.array[number * self.slot_bytes : (number + 1) * self.slot_bytes]


class SlotRing:
    """Says which slots are free.

    A slot is taken for a batch, filled by workers, and lent to whoever uses the batch. It is free
    again when the last tensor that shares its memory is gone, so a batch never changes under the
    hands of its user. Who keeps more than `max_lent` batches gets copies of further ones.
    """

    def __init__(self, memory: SlotMemory, *, max_lent: int) -> None:
        """Starts with all slots free."""
        self._memory = memory
        self._max_lent = max_lent
        self._lent: set[int] = set()
        self._free: deque[int] = deque(range(memory.num_slots))

    def free_all_but_lent(self) -> None:
        """Takes back the slots of batches that nobody will ask for any more."""
        self._free = deque(set(range(self._memory.num_slots)) - self._lent)

    def take(self) -> int:
        """Returns a free slot."""
        assert self._free, "there are slots for all batches that can be on their way"
        return self._free.popleft()

    def lend(self, number: int) -> torch.Tensor:
        """Returns the bytes of a filled slot, uint8 (slot_bytes,), for someone to use."""
        if len(self._lent) >= self._max_lent:
            copied = torch.from_numpy(self._memory.slot(number)).clone()
            self._free.append(number)
            return copied
        self._lent.add(number)
        block = self._memory.slot(number)
        # The storage of the tensor keeps `block` itself alive, and so does every tensor that shares
        # the storage; a NumPy view of `block` would only keep the memory.
        weakref.finalize(block, self._take_back, number).atexit = False
        return torch.from_numpy(block)

    def _take_back(self, number: int) -> None:
        self._lent.discard(number)
        self._free.append(number)

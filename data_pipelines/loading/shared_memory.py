"""Memory that a process and its workers share, without a name that could be left behind."""

import mmap
import os
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class SharedMemory:
    """A block of bytes that is gone when the last process that uses it is, however that ends.

    Not `/dev/shm`, which containers often limit to 64 MB, and not a file somewhere: a memory file
    without a name. Forked workers inherit it; it can also be sent to a process that is started.

    Attributes:
        array: The bytes, uint8 (num_bytes,).
    """

    def __init__(self, num_bytes: int) -> None:
        """Makes a block of zeros; memory is taken when it is written to."""
        self._map(_new_memory_file(num_bytes), num_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._descriptor), len(self.array))

    def pin(self) -> bool:
        """Locks the block for direct copies to a CUDA device; False where that is refused.

        Call it after the workers were forked. Registering the one block once (CUDA's
        `cudaHostRegister`) spares the copy into pinned memory that `DataLoader` would make of every
        batch.
        """
        runtime = torch.cuda.cudart()
        address = self.array.ctypes.data
        if int(runtime.cudaHostRegister(address, len(self.array), 0)) != 0:
            return False
        weakref.finalize(self, runtime.cudaHostUnregister, address)
        return True

    def _map(self, descriptor: int, num_bytes: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8)


def _received(descriptor: Any, num_bytes: int) -> SharedMemory:
    memory = SharedMemory.__new__(SharedMemory)
    memory._map(descriptor.detach(), num_bytes)
    return memory


def _new_memory_file(num_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("data_pipelines")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor

"""How the arrays of a batch lie in one block of memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Arrays begin at whole cache lines, and so at a multiple of their items' size.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Field:
    """One array of a batch.

    Attributes:
        name: What it is.
        dtype: Its type.
        shape: Its shape, samples first.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class BatchLayout:
    """The arrays of a batch, one after the other."""

    fields: tuple[Field, ...]

    @property
    def num_bytes(self) -> int:
        """How many bytes a batch takes."""
        return sum(_aligned(field.num_bytes) for field in self.fields)

    def arrays(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Returns the arrays, by name, as views of a block of at least `num_bytes` bytes."""
        return {name: tensor.numpy() for name, tensor in self.tensors(torch.from_numpy(block))}

    def tensors(self, block: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the arrays as tensors that share the storage of a block of bytes."""
        start = 0
        for field in self.fields:
            part = block[start : start + field.num_bytes]
            yield field.name, part.view(field.dtype).view(field.shape)
            start += _aligned(field.num_bytes)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT

"""A rank's slice of one micro-batch, cut into the chunks that go through the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msam_scale.batch_tree import Batch, narrow


@dataclass(frozen=True)
class Chunk:
    """Samples of one forward-backward on one rank.

    Attributes:
        batch: the samples, on any device.
        positions: their positions in the mini-batch.
        is_last: the micro-batch has no further chunk on this rank.
    """

    batch: Batch
    positions: range
    is_last: bool


@dataclass(frozen=True)
class MicroBatch:
    """This rank's slice of the micro-batch S_j.

    Attributes:
        batch: the samples of the slice, on any device.
        number: j, from 0 on.
        positions: their positions in the mini-batch.
        is_last: the rank has no further micro-batch in this step.
        chunk_size: most samples of a chunk.
    """

    batch: Batch
    number: int
    positions: range
    is_last: bool
    chunk_size: int

    def chunks(self) -> Iterator[Chunk]:
        """The slice in order, in chunks of `chunk_size`, the last one possibly shorter."""
        total = len(self.positions)
        for start in range(0, total, self.chunk_size):
            length = min(self.chunk_size, total - start)
            yield Chunk(
                batch=narrow(self.batch, start, length),
                positions=self.positions[start : start + length],
                is_last=start + length == total,
            )

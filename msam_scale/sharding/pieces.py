"""Who saves what: each element of the training state is one rank's to write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from msam_scale.ranks import Ranks
from msam_scale.sharding.dtensors import is_dtensor, is_in_rows

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MODEL, OPTIMIZER = "model/", "optimizer/"


@dataclass(frozen=True)
class Piece:
    """A range of a tensor's elements in row-major order.

    Attributes:
        name: of the tensor in a checkpoint.
        shape: of the whole tensor.
        start: the first element's place in it.
        values: the elements, one-dimensional; live memory where that is possible.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: torch.Tensor

    @classmethod
    def whole(cls, name: str, tensor: torch.Tensor) -> Piece:
        """All of a tensor."""
        return cls(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1))

    def part(self, start: int, stop: int) -> Piece:
        """The elements from `start` to `stop`, counted within this piece."""
        return replace(self, start=self.start + start, values=self.values[start:stop])

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return self.values.numel() * self.values.element_size()


def saved_by(
    ranks: Ranks,
    *,
    whole: Iterable[Piece],
    sharded: Iterable[Piece],
    shard_group_size: int,
) -> list[Piece]:
    """What this rank saves of what it holds, so that all ranks together save everything once.

    Args:
        ranks: this one's place.
        whole: pieces that every rank holds.
        sharded: pieces that the ranks at this one's place in their shard groups hold.
        shard_group_size: G_s.
    """
    replica, num_replicas = ranks.rank // shard_group_size, ranks.size // shard_group_size
    return [
        *share_of(sharded, index=replica, count=num_replicas),
        *share_of(whole, index=ranks.rank, count=ranks.size),
    ]


def first_not_finite(pieces: Iterable[Piece]) -> str | None:
    """The name of the first tensor, by name, with a value that is not finite; None for none.

    Waits for the device.
    """
    floating = (piece for piece in pieces if piece.values.is_floating_point())
    found = (piece.name for piece in floating if not bool(piece.values.isfinite().all()))
    return min(found, default=None)


def share_of(pieces: Iterable[Piece], *, index: int, count: int) -> Iterator[Piece]:
    """The part that one of `count` ranks with the same pieces saves: equally many bytes each.

    Args:
        pieces: the same on all of them.
        index: 0 ≤ index < count.
        count: of the ranks.
    """
    pieces = list(pieces)
    total = sum(piece.num_bytes for piece in pieces)
    first, last = total * index // count, total * (index + 1) // count
    position = 0
    for piece in pieces:
        size = piece.values.element_size()
        # Rounded up alike at both ends: where one rank's part ends, the next one's begins.
        start = min(max(0, -(-(first - position) // size)), piece.values.numel())
        stop = min(max(0, -(-(last - position) // size)), piece.values.numel())
        position += piece.num_bytes
        if start < stop:
            yield piece.part(start, stop)
        elif not math.prod(piece.shape) and index == 0:
            yield piece  # an empty tensor is somebody's as well


def local_piece(name: str, tensor: torch.Tensor) -> tuple[Piece, bool]:
    """This rank's part of a tensor, and whether it is whole on every rank. May be collective.

    A DTensor in equal runs of rows is taken as it lies; one that is laid out otherwise is gathered.
    """
    if not is_dtensor(tensor):
        return Piece.whole(name, tensor), True
    if not is_in_rows(tensor):
        return Piece.whole(name, tensor.full_tensor()), True
    start, _ = local_range(tensor)
    local = tensor.to_local().detach()
    return Piece(name, tuple(tensor.shape), start, local.reshape(-1)), False


def local_range(tensor: DTensor) -> tuple[int, int]:
    """First and last + 1 element, in row-major order, of a rank's part of a tensor in `Shard(0)`.

    `Shard` gives each rank as many rows as `torch.chunk` would.
    """
    num_rows, row = tensor.shape[0], math.prod(tensor.shape[1:])
    rows = -(-num_rows // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * rows, num_rows)
    last = min(first + rows, num_rows)
    assert tensor.to_local().shape[0] == last - first, "torch shards rows in another way"
    return first * row, last * row


def boxes(
    shape: Sequence[int], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts a range in row-major order into boxes, as `torch.distributed.checkpoint` counts parts.

    Args:
        shape: of the whole tensor.
        start: first element.
        stop: last element + 1.

    Yields:
        Offsets and sizes of at most 2·len(shape) - 1 boxes, in order; each is itself a range.
    """
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    if not row or not shape[0]:
        yield (0,) * len(shape), tuple(shape)
        return
    while start < stop:
        index, within = divmod(start, row)
        if within == 0 and stop - start >= row:
            rows = (stop - start) // row
            yield (index, *(0,) * (len(shape) - 1)), (rows, *shape[1:])
            start += rows * row
        else:
            last = min(stop - index * row, row)
            for offsets, sizes in boxes(shape[1:], within, last):
                yield (index, *offsets), (1, *sizes)
            start = index * row + last

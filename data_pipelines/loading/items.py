"""What is to be loaded: items, which are yielded, and the parts of them that workers load."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.transforms import MixingDraw

# A part is large enough that handing it over (about 0.3 ms) does not count, and small enough that
# several workers share an item: one photograph takes about 2 ms, a small image stored as an array
# some microseconds.
_SAMPLES_PER_PART = 64
_BYTES_PER_PART = 1 << 20


@dataclass(frozen=True)
class Item:
    """The samples of one batch.

    Attributes:
        epoch: Whose augmentation is drawn.
        sample_ids: The samples, in the order of the batch, (rows,); a sample may come twice. Where
            samples are mixed, the second half is the partners of the first.
        length: For text: how many tokens all samples are filled up to; 0 for images.
        mixing: How samples and partners are mixed, if they are.
    """

    epoch: int
    sample_ids: NDArray[np.int64]
    length: int = 0
    mixing: MixingDraw | None = None


class Part(NamedTuple):
    """Some samples of an item, loaded by one worker.

    Attributes:
        slot: Where the item goes.
        num_rows: How many rows the whole item has.
        epoch: As in `Item`.
        length: As in `Item`.
        sample_ids: Different samples.
        rows: The row of the batch that each goes to.
        copies: Rows that are the same as others: (row, row that it is a copy of).
    """

    slot: int
    num_rows: int
    epoch: int
    length: int
    sample_ids: list[int]
    rows: list[int]
    copies: list[tuple[int, int]]


def samples_per_part(row_bytes: int) -> int:
    """Returns how many samples a worker loads at a time.

    Args:
        row_bytes: Size of a sample in the batch.
    """
    return max(_SAMPLES_PER_PART, _BYTES_PER_PART // row_bytes)


def parts_of(item: Item, *, slot: int, part_size: int) -> Iterator[Part]:
    """Cuts an item into parts of at most `part_size` samples, each read and decoded once."""
    all_ids = item.sample_ids.tolist()
    first_row: dict[int, int] = {}
    copies: list[tuple[int, int]] = []
    for row, sample_id in enumerate(all_ids):
        if (first := first_row.setdefault(sample_id, row)) != row:
            copies.append((row, first))
    rows = list(first_row.values())
    for start in range(0, len(rows), part_size):
        part_rows = rows[start : start + part_size]
        own = set(part_rows) if copies else set()
        yield Part(
            slot=slot,
            num_rows=len(all_ids),
            epoch=item.epoch,
            length=item.length,
            sample_ids=[all_ids[row] for row in part_rows],
            rows=part_rows,
            copies=[(row, first) for row, first in copies if first in own],
        )

"""What a data set must say to be prepared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class EncodedSample(NamedTuple):
    """A sample as it is stored: its key, and the bytes of each column by extension."""

    key: str
    columns: dict[str, bytes]


@dataclass(frozen=True)
class SplitSource:
    """The samples of a split in the order they are written, which is a shuffled one."""

    num_samples: int
    samples: Iterable[EncodedSample] = field(repr=False)


@dataclass(frozen=True)
class DatasetRecipe:
    """How a data set is made.

    Attributes:
        name: What users call it.
        description: One line for people.
        num_classes: Labels are 0 … num_classes - 1.
        samples_per_shard: At most so many samples go into one shard.
        splits: Maps the seed to the splits by name; the same seed always gives the same bytes.
    """

    name: str
    description: str
    num_classes: int
    samples_per_shard: int
    splits: Callable[[int], dict[str, SplitSource]]

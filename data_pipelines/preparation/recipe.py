"""What a data set must say to be prepared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation
from data_pipelines.preparation.record import TokenizerRecord
from data_pipelines.progress import Progress

# Large enough for sequential reading, small enough that a data set has many to shuffle.
_SHARD_BYTES = 128 << 20
_MAX_SAMPLES_PER_SHARD = 5000


class EncodedSample(NamedTuple):
    """A sample as it is stored.

    Attributes:
        key: Its name in the shard, without a dot.
        columns: The bytes of each column, by extension.
        origin: Where it comes from, for messages.
    """

    key: str
    columns: dict[str, bytes]
    origin: str


class SampleSource(Protocol):
    """Samples that can be read in any order, in any process: it is sent to the workers."""

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        """Yields the samples at `places`, numbers below the number of samples, in that order.

        Raises:
            UserError: A sample cannot be read or is not what it was when the source was opened.
        """
        ...


@dataclass(frozen=True)
class SplitSource:
    """The samples of a split and the shuffled order in which they are written.

    Attributes:
        samples: All samples that the permutation is over; maybe those of other splits, too.
        permutation: The order.
        start: The split begins at this place of the permutation.
        stop: It ends before this one.
        samples_per_shard: At most so many samples go into one shard.
    """

    samples: SampleSource = field(repr=False)
    permutation: Permutation = field(repr=False)
    start: int
    stop: int
    samples_per_shard: int

    @property
    def num_samples(self) -> int:
        """How many samples the split has."""
        return self.stop - self.start

    @property
    def num_shards(self) -> int:
        """How many shards it takes."""
        return -(-self.num_samples // self.samples_per_shard)

    def places(self, shard: int) -> NDArray[np.int64]:
        """Returns where in `samples` those of a shard are, in the order they are written."""
        first = self.start + shard * self.samples_per_shard
        return self.permutation(np.arange(first, min(first + self.samples_per_shard, self.stop)))


@dataclass(frozen=True)
class PreparationOptions:
    """What a user says about a data set; see `prepare`. None where nothing was said."""

    seed: int
    source: Path | None = None
    val_fraction: float | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class OpenedDataset:
    """A data set whose input was found to be whole, ready to be written.

    Attributes:
        splits: By name.
        num_classes: Labels are 0 … num_classes - 1.
        class_names: Name of each class, where the input names them.
        sources: What it was made from, by file name: sizes and checksums.
        notes: What a user should know about it: what was left out, cut, or is not as published.
        tokenizer: What made the tokens, for text.
    """

    splits: dict[str, SplitSource]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tokenizer: TokenizerRecord | None = None


@dataclass(frozen=True)
class DatasetRecipe:
    """How a data set is made.

    Attributes:
        name: What users call it.
        description: One line for people.
        open: Checks the input and returns the data set. It may keep files in the folder it is
            given, which lives until the data set is finished.
        describe: Returns what `OpenedDataset.sources` says about the input, or at least how each
            text of it begins, without the work of opening it; gets what `open` gets. None for data
            sets without input.
        source: What `source` has to be, for messages; None when the data set needs none.
        source_is_folder: Whether it has to be a folder.
        required: Options besides `source` that have to be given.
        optional: Options that may be given; all others have no effect and are refused.
    """

    name: str
    description: str
    open: Callable[[PreparationOptions, Path, Progress], OpenedDataset]
    describe: Callable[[PreparationOptions, Path, Progress], Mapping[str, str]] | None = None
    source: str | None = None
    source_is_folder: bool = False
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


def whole_split(
    samples: SampleSource, *, num_samples: int, num_bytes: int, name: str, seed: int
) -> SplitSource:
    """Returns a split of all samples of a source, shuffled with a key of its own.

    Args:
        samples: The source.
        num_samples: How many it has.
        num_bytes: How many bytes they have together; shards get about 128 MiB.
        name: Of the split.
        seed: Of the shuffle.
    """
    return fraction_splits(
        samples, num_samples=num_samples, num_bytes=num_bytes, names=(name, None), seed=seed
    )[name]


def fraction_splits(
    samples: SampleSource,
    *,
    num_samples: int,
    num_bytes: int,
    seed: int,
    names: tuple[str, str | None] = ("train", "val"),
    val_fraction: float = 0.0,
) -> dict[str, SplitSource]:
    """Cuts one shuffled source into two splits, the second with `val_fraction` of the samples.

    Its size is rounded to the nearest whole number. With a fraction of 0 there is no second split.

    Raises:
        UserError: A split would be empty.
    """
    first, second = names
    num_val = round(num_samples * val_fraction)
    if num_val == num_samples or (num_val == 0 and val_fraction > 0):
        raise UserError(
            f"val-fraction: {val_fraction} of {num_samples} samples leaves {num_samples - num_val} "
            f"to train and {num_val} to validate on; each needs one or more, or give 0 for no "
            "validation split"
        )
    key = derive_key("prepare", seed, int.from_bytes(first.encode("ascii"), "little"))
    permutation = Permutation(num_samples, key=key)
    mean_bytes = max(1, num_bytes // num_samples)
    samples_per_shard = max(1, min(_MAX_SAMPLES_PER_SHARD, _SHARD_BYTES // mean_bytes))
    bounds = {first: (0, num_samples - num_val)}
    if second is not None:
        bounds[second] = (num_samples - num_val, num_samples)
    return {
        name: SplitSource(
            samples=samples,
            permutation=permutation,
            start=start,
            stop=stop,
            samples_per_shard=samples_per_shard,
        )
        for name, (start, stop) in bounds.items()
        if stop > start
    }

"""One epoch of an order that permutes shards, and samples within windows of the shards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order.mixing import derive_key, derive_keys
from data_pipelines.order.permutation import Permutation, permute_each


@dataclass(frozen=True)
class ShardStream:
    """The shards of a split in the order of an epoch, one after the other.

    Attributes:
        seed: Of the order.
        epoch: Which epoch.
        starts: Where each shard begins in the stream, and where the last one ends, (shards + 1,).
        first_ids: Id of the first sample of each, (shards,).
    """

    seed: int
    epoch: int
    starts: NDArray[np.int64]
    first_ids: NDArray[np.int64]

    @classmethod
    def of_epoch(cls, shard_sizes: NDArray[np.int64], *, seed: int, epoch: int) -> "ShardStream":
        """Permutes the shards.

        Args:
            shard_sizes: How many samples each shard of the split has, (shards,).
            seed: Of the order.
            epoch: Which epoch.
        """
        num_shards = len(shard_sizes)
        permutation = Permutation(num_shards, key=derive_key("shards", seed, epoch))
        shards = permutation(np.arange(num_shards))
        return cls(
            seed=seed,
            epoch=epoch,
            starts=_starts(shard_sizes[shards]),
            first_ids=_starts(shard_sizes)[shards],
        )

    @property
    def num_samples(self) -> int:
        """How long the stream is."""
        return int(self.starts[-1])

    def permuted(
        self, places: NDArray[np.int64], *, windows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Permutes the stream within windows and returns the ids of the samples at `places`.

        Args:
            places: In the permuted stream, any shape.
            windows: Where each window begins, and where the last one ends; each begins later than
                the one before, the first at 0, and the last ends where the stream does.
        """
        flat = places.ravel()
        window = np.searchsorted(windows, flat, side="right") - 1
        starts = windows[window]
        within = permute_each(
            flat - starts,
            sizes=windows[window + 1] - starts,
            keys=derive_keys("window", self.seed, self.epoch, window.astype(np.uint64)),
        )
        return self.ids(starts + within).reshape(places.shape)

    def ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the ids of the samples at `places` of the stream, (places,)."""
        shard = np.searchsorted(self.starts, places, side="right") - 1
        ids: NDArray[np.int64] = self.first_ids[shard] + places - self.starts[shard]
        return ids


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])

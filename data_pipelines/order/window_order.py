"""The order `window`: shards are permuted, and then the samples of a few shards at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.order.mixing import checked_seed
from data_pipelines.order.shard_windows import ShardStream


class WindowOrder:
    """A permutation of the shards, and of the samples within each run of some consecutive shards.

    So one step reads from about `shards_per_window` shards, all ranks from the same ones, which
    suits one machine or a shared cache. Time and memory of a call depend on what is asked for;
    the first call of an epoch sorts out its shards besides.
    """

    def __init__(
        self, shard_sizes: NDArray[np.int64], *, seed: int, shards_per_window: int
    ) -> None:
        """Prepares the order.

        Args:
            shard_sizes: How many samples each shard has, in the order of the index, (shards,).
            seed: In [0, 2**63).
            shards_per_window: How many shards are mixed with each other, at least 1.

        Raises:
            UserError: The seed or the number of shards is out of range.
        """
        if shards_per_window < 1:
            raise UserError(f"order: window:shards={shards_per_window}, but 1 or more are needed")
        self._shard_sizes = shard_sizes
        self._seed = checked_seed(seed)
        self._shards_per_window = shards_per_window
        self._epoch: _Epoch | None = None

    @property
    def identity(self) -> str:
        """The order as a setting that says all its parameters."""
        return f"window:shards={self._shards_per_window}"

    def sample_ids(self, epoch: int, *, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the samples at places start … stop - 1 of an epoch."""
        if self._epoch is None or self._epoch.stream.epoch != epoch:
            self._epoch = self._of_epoch(epoch)
        stream, windows = self._epoch.stream, self._epoch.windows
        assert 0 <= start <= stop <= stream.num_samples, (start, stop, stream.num_samples)
        return stream.permuted(np.arange(start, stop, dtype=np.int64), windows=windows)

    def _of_epoch(self, epoch: int) -> "_Epoch":
        stream = ShardStream.of_epoch(self._shard_sizes, seed=self._seed, epoch=epoch)
        windows = np.append(stream.starts[: -1 : self._shards_per_window], stream.starts[-1:])
        return _Epoch(stream, windows)


@dataclass(frozen=True)
class _Epoch:
    stream: ShardStream
    windows: NDArray[np.int64]

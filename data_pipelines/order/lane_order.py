"""The order `lanes`: every step takes its samples from lanes, each with its own few shards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.order.mixing import checked_seed
from data_pipelines.order.shard_windows import ShardStream


class LaneOrder:
    """A permutation of the shards, cut into equal lanes that are read side by side.

    The stream of permuted shards is cut into `num_lanes` runs of equally many samples; within a
    lane, samples are permuted in windows of `shards_per_window` shards. A step takes
    `batch_size / num_lanes` samples from every lane, lane after lane. So where a rank's samples are
    whole lanes, it reads whole shards of its own, one after the other, which suits shards that are
    fetched from an object store. The partition of a mini-batch follows from the number of lanes:
    that is part of what a run is, like the seed, and not of where it runs.

    What is left over when the lanes are cut and when full mini-batches are taken from them, less
    than `batch_size` samples, comes last and is others each epoch.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        *,
        seed: int,
        batch_size: int,
        num_lanes: int,
        shards_per_window: int,
    ) -> None:
        """Prepares the order.

        Args:
            shard_sizes: How many samples each shard has, in the order of the index, (shards,).
            seed: In [0, 2**63).
            batch_size: Samples of a mini-batch over all ranks.
            num_lanes: A divisor of it.
            shards_per_window: How many shards are mixed with each other, at least 1.

        Raises:
            UserError: A number is out of range.
        """
        given = f"order: lanes:lanes={num_lanes},shards={shards_per_window}"
        if num_lanes < 1 or batch_size % num_lanes:
            raise UserError(
                f"{given}: a step takes equally many samples from every lane, but {num_lanes} "
                f"lanes do not divide the batch size {batch_size}; its divisors would"
            )
        if shards_per_window < 1:
            raise UserError(f"{given}, but 1 or more shards are needed")
        if batch_size > shard_sizes.sum():
            raise UserError(
                f"batch_size: {batch_size} is more than the {shard_sizes.sum()} samples there are"
            )
        self._shard_sizes = shard_sizes
        self._seed = checked_seed(seed)
        self._num_lanes = num_lanes
        self._shards_per_window = shards_per_window
        self._lane_size = int(shard_sizes.sum()) // num_lanes
        self._samples_per_step = batch_size // num_lanes
        self._num_steps = self._lane_size // self._samples_per_step
        self._epoch: _Epoch | None = None

    @property
    def identity(self) -> str:
        """The order as a setting that says all its parameters."""
        return f"lanes:lanes={self._num_lanes},shards={self._shards_per_window}"

    def sample_ids(self, epoch: int, *, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the samples at places start … stop - 1 of an epoch.

        The mini-batch of step s of the epoch is at places s * batch_size … (s + 1) * batch_size - 1
        and has the samples of the first lane first.
        """
        if self._epoch is None or self._epoch.stream.epoch != epoch:
            self._epoch = self._of_epoch(epoch)
        stream, windows = self._epoch.stream, self._epoch.windows
        assert 0 <= start <= stop <= stream.num_samples, (start, stop, stream.num_samples)
        places = self._places_in_stream(np.arange(start, stop, dtype=np.int64))
        return stream.permuted(places, windows=windows)

    def _places_in_stream(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where in the lanes, laid end to end, the samples at places of the epoch are."""
        step, in_batch = np.divmod(places, self._samples_per_step * self._num_lanes)
        lane, in_lane = np.divmod(in_batch, self._samples_per_step)
        in_lane += step * self._samples_per_step
        # Then the ends of the lanes, and what is behind the last lane is where it is already.
        used = self._num_steps * self._samples_per_step
        unused = self._lane_size - used
        rest = places - used * self._num_lanes
        in_ends = (rest >= 0) & (rest < unused * self._num_lanes)
        lane[in_ends], in_lane[in_ends] = np.divmod(rest[in_ends], max(unused, 1))
        in_lane[in_ends] += used
        in_stream: NDArray[np.int64] = lane * self._lane_size + in_lane
        behind = places >= self._num_lanes * self._lane_size
        in_stream[behind] = places[behind]
        return in_stream

    def _of_epoch(self, epoch: int) -> "_Epoch":
        stream = ShardStream.of_epoch(self._shard_sizes, seed=self._seed, epoch=epoch)
        lanes = np.arange(self._num_lanes + 1, dtype=np.int64) * self._lane_size
        # A shard that two lanes share counts in both; what is behind the lanes is one more.
        pieces = np.union1d(stream.starts, lanes)
        lane = np.searchsorted(lanes, pieces, side="right") - 1
        number_in_lane = np.arange(len(pieces)) - np.searchsorted(pieces, lanes)[lane]
        begins = (number_in_lane % self._shards_per_window == 0) | (pieces == stream.num_samples)
        return _Epoch(stream, pieces[begins])


@dataclass(frozen=True)
class _Epoch:
    stream: ShardStream
    windows: NDArray[np.int64]

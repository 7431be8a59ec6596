"""Which samples each batch of each step has: the plan that loaders and adapters carry out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.items import Item
from data_pipelines.loading.mixing import SampleMixing
from data_pipelines.order import SampleOrder, sample_order


@dataclass(frozen=True)
class MiniBatchSchedule:
    """The items of one rank for every step.

    Attributes:
        order: The order of the samples.
        batch_size: Samples of a mini-batch over all ranks.
        micro_batches: Into how many equal parts the mini-batch is cut.
        steps_per_epoch: Full mini-batches in an epoch.
        positions: For each item of a step, the positions in the mini-batch it consists of.
        lengths: For text, how many tokens each sample has.
        seed: Of the order, and of the mixing.
        mixing: Whether and how samples are mixed.
        image_size: (height, width) of the images as the model sees them, if samples are mixed.
    """

    seed: int
    order: SampleOrder
    batch_size: int
    micro_batches: int
    steps_per_epoch: int
    positions: Sequence[NDArray[np.int64]]
    lengths: NDArray[np.uint32] | None
    mixing: SampleMixing | None = None
    image_size: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        index: SampleIndex,
        *,
        order: str,
        seed: int,
        batch_size: int,
        micro_batches: int,
        positions: Sequence[Sequence[int]],
        mixing: SampleMixing | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> "MiniBatchSchedule":
        """Checks the settings; see `MicroBatchLoader`.

        Raises:
            UserError: A setting is out of range; the message names it and the bounds.
        """
        if not 1 <= batch_size <= index.num_samples:
            raise UserError(
                f"batch_size: {batch_size} does not fit the {index.num_samples} samples of "
                f"{index.directory}; 1 … {index.num_samples} would"
            )
        if micro_batches < 1 or batch_size % micro_batches:
            raise UserError(
                f"micro_batches: {micro_batches} does not divide the batch size {batch_size}; "
                "its divisors would"
            )
        for item in positions:
            _check_positions(item, batch_size=batch_size, micro_batches=micro_batches)
        if mixing is not None and image_size is None:
            raise UserError(
                f"mixing: {index.directory} has no images of one size, and the transform does not "
                "make them so; use a transform that does"
            )
        return cls(
            seed=seed,
            order=sample_order(order, index=index, seed=seed, batch_size=batch_size),
            batch_size=batch_size,
            micro_batches=micro_batches,
            steps_per_epoch=index.num_samples // batch_size,
            positions=[np.asarray(item, dtype=np.int64) for item in positions],
            lengths=index.lengths,
            mixing=mixing,
            image_size=image_size or (0, 0),
        )

    def mini_batch(self, step: int) -> NDArray[np.int64]:
        """Returns the samples of the mini-batch of a step, counted over all epochs, in order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return self.order.sample_ids(epoch, start=start, stop=start + self.batch_size)

    def items(self, step: int) -> Iterator[Item]:
        """Yields the items of a step, counted over all epochs."""
        mini_batch = self.mini_batch(step)
        epoch = step // self.steps_per_epoch
        size = self.batch_size // self.micro_batches
        for positions in self.positions:
            number = int(positions[0]) // size
            micro_batch = mini_batch[number * size : (number + 1) * size]
            sample_ids, draw = micro_batch[positions - number * size], None
            if self.mixing is not None:
                draw = self.mixing.draw(
                    self.seed,
                    epoch=epoch,
                    step=step,
                    micro_batch=number,
                    num_samples=size,
                    image_size=self.image_size,
                )
                partners = micro_batch[draw.partners[positions - number * size]]
                sample_ids = np.concatenate([sample_ids, partners])
            # The longest of the whole micro-batch, so that ranks that share it fill up to the same
            # length, as one rank alone would.
            length = 0 if self.lengths is None else int(self.lengths[micro_batch].max())
            yield Item(epoch=epoch, sample_ids=sample_ids, length=length, mixing=draw)


def _check_positions(item: Sequence[int], *, batch_size: int, micro_batches: int) -> None:
    is_distinct = len(set(item)) == len(item) > 0
    if not is_distinct or min(item) < 0 or max(item) >= batch_size:
        raise UserError(
            f"positions: {list(item)} are not different places in 0 … {batch_size - 1} "
            f"(batch_size {batch_size})"
        )
    size = batch_size // micro_batches
    if min(item) // size != max(item) // size:
        raise UserError(
            f"positions: {list(item)} are of several micro-batches of {size} samples "
            f"(batch_size {batch_size}, micro_batches {micro_batches})"
        )

"""A split of small images that is read once and then kept in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipelines.decoding import Sample
from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.batchers import SampleReader
from data_pipelines.loading.shared_memory import SharedMemory

_SAMPLES_AT_ONCE = 4096


class ResidentSamples:
    """All images of a split in one block of memory that the workers of a rank share.

    Attributes:
        labels: Of the samples by id, int64 (samples,).
    """

    def __init__(self, index: SampleIndex, *, reader: SampleReader, max_bytes: int) -> None:
        """Reads and decodes all samples.

        Args:
            index: The split.
            reader: Reads its samples.
            max_bytes: What the images may take.

        Raises:
            UserError: The images differ in size, are too many, or cannot be read.
        """
        if index.image_shape is None:
            raise UserError(
                f"resident: {index.directory} holds no images of one size, which it needs"
            )
        shape = (index.num_samples, *index.image_shape)
        num_bytes = int(np.prod(shape))
        if num_bytes > max_bytes:
            raise UserError(
                f"resident: the images of {index.directory} take {num_bytes} bytes, more than "
                f"max_host_bytes allows ({max_bytes}); stream them"
            )
        self._shape = shape
        self._memory = SharedMemory(num_bytes)
        self.labels: NDArray[np.int64] = np.zeros(index.num_samples, np.int64)
        images, labels = self.images, self.labels
        for start in range(0, index.num_samples, _SAMPLES_AT_ONCE):
            ids = range(start, min(start + _SAMPLES_AT_ONCE, index.num_samples))
            for place, sample in reader.read(ids):
                labels[start + place] = sample.label
                images[start + place] = sample.image

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (samples, height, width, channels), by sample id."""
        return self._memory.array.reshape(self._shape)

    def read(
        self, sample_ids: Sequence[int], *, epoch: int | None = None
    ) -> Iterator[tuple[int, Sample]]:
        """Yields samples, each with its place in `sample_ids`."""
        images, labels = self.images, self.labels[sample_ids].tolist()
        for place, sample_id in enumerate(sample_ids):
            yield place, Sample(images[sample_id], labels[place])

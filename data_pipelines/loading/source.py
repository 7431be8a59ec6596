"""What every loader needs to load a split: how it is read, and what its batches are."""

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.batchers import Batcher, SampleReader, check_kind
from data_pipelines.loading.image_batches import ImageBatcher
from data_pipelines.loading.resident import ResidentSamples
from data_pipelines.loading.text_batches import TextBatcher
from data_pipelines.reading import BadDataPolicy, BadSamples, ShardReader
from data_pipelines.sources import ShardSource
from data_pipelines.transforms import TransformPreset


class SplitSource:
    """Reads a split and puts its samples into batches.

    Attributes:
        reader: Reads samples from the shards, or from memory once they are resident.
        bad_samples: The damaged samples that were met here and in the workers.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        transform: TransformPreset | None,
        augmentation_seed: int | None,
        source: ShardSource | None,
        on_error: BadDataPolicy | None,
    ) -> None:
        """Opens nothing yet.

        Args:
            index: The split.
            transform: What is done to images; None for text.
            augmentation_seed: Augments with random streams from this seed; None is for evaluation.
            source: Reads the bytes of the shards; by default from the folder of the index.
            on_error: What happens when a sample is damaged; by default an error.

        Raises:
            UserError: Images without a transform, or text with one, or a policy without effect.
        """
        check_kind(index, transform)
        self._on_error = BadDataPolicy() if on_error is None else on_error
        self._index = index
        self._transform = transform
        self._augmentation_seed = augmentation_seed
        reader = ShardReader(index, source=source, on_error=on_error)
        self.reader: SampleReader = reader
        self.bad_samples: BadSamples = reader.bad_samples

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images after the transform; None for text, or when unknown."""
        if self._transform is not None and self._transform.size is not None:
            return self._transform.size
        shape = self._index.image_shape
        return None if shape is None else shape[:2]

    def make_resident(self, *, max_bytes: int) -> int:
        """Reads all samples into memory and returns how many bytes they take.

        Raises:
            UserError: They take more than `max_bytes`, cannot be read, or damaged ones are to be
                replaced, which is by others in each epoch.
        """
        if self._on_error.kind == "substitute":
            raise UserError(
                "resident: cannot be combined with on_error: substitute, which replaces a damaged "
                "sample by another one in each epoch; leave one of them out"
            )
        samples = ResidentSamples(self._index, reader=self.reader, max_bytes=max_bytes)
        self.reader = samples
        return samples.images.nbytes

    def batcher(self, *, first_sample: int, epoch: int) -> Batcher:
        """Returns what puts samples into batches.

        Args:
            first_sample: A sample that tells the shape of the images after the transform.
            epoch: Whose augmentation it gets.

        Raises:
            UserError: The sample cannot be read.
        """
        if self._index.meta.tokens is not None:
            return TextBatcher(self._index.meta.tokens)
        assert self._transform is not None
        return ImageBatcher.for_first_sample(
            self._index,
            transform=self._transform,
            augmentation_seed=self._augmentation_seed,
            reader=self.reader,
            sample_id=first_sample,
            epoch=epoch,
        )

"""Batches of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.batchers import Batch, SampleReader
from data_pipelines.loading.items import Item, Part
from data_pipelines.loading.layout import BatchLayout, Field
from data_pipelines.loading.mixing import mixed_batch
from data_pipelines.loading.resident import ResidentSamples
from data_pipelines.transforms import TransformPreset, augmentation_words
from data_pipelines.transforms.identity import augmented
from data_pipelines.transforms.presets import Image, Images


@dataclass(frozen=True)
class ImageBatcher:
    """Images, uint8 (rows, height, width, channels), and labels, int64 (rows,).

    Attributes:
        index: The split.
        transform: What is done to the images.
        augmentation_seed: Augments with random streams from this seed; None is for evaluation.
        image_shape: (height, width, channels) after the transform.
    """

    index: SampleIndex
    transform: TransformPreset
    augmentation_seed: int | None
    image_shape: tuple[int, ...]

    @classmethod
    def for_first_sample(
        cls,
        index: SampleIndex,
        *,
        transform: TransformPreset,
        augmentation_seed: int | None,
        reader: SampleReader,
        sample_id: int,
        epoch: int,
    ) -> "ImageBatcher":
        """Finds the shape of the transformed images by transforming one.

        Raises:
            UserError: The sample cannot be read.
        """
        batcher = cls(index, transform, augmentation_seed, ())
        ((_, sample),) = reader.read([sample_id], epoch=epoch)
        shape = batcher._transformed(sample.image, sample_id, epoch).shape
        return cls(index, transform, augmentation_seed, shape)

    def layout(self, num_rows: int, *, length: int) -> BatchLayout:
        """Returns how a batch lies in memory."""
        return BatchLayout(
            (
                Field("labels", torch.int64, (num_rows,)),
                Field("images", torch.uint8, (num_rows, *self.image_shape)),
            )
        )

    def load(self, part: Part, *, arrays: Mapping[str, NDArray[Any]], reader: SampleReader) -> None:
        """Loads and transforms images into their rows."""
        if self._augments_batches:
            self._load_together(part, arrays, reader)
            return
        for place, sample in reader.read(part.sample_ids, epoch=part.epoch):
            sample_id, row = part.sample_ids[place], part.rows[place]
            image = self._transformed(sample.image, sample_id, part.epoch)
            if image.shape != self.image_shape:
                raise UserError(
                    f"{self.index.directory}: sample {self.index.key(sample_id)!r} has the shape "
                    f"{image.shape} after the transform {self.transform.name!r}, but others "
                    f"{self.image_shape}; use a transform that gives all images one size"
                )
            arrays["images"][row] = image
            arrays["labels"][row] = sample.label

    def batch(self, tensors: Mapping[str, torch.Tensor], item: Item) -> Batch:
        """Returns (images, labels), or a `MixedBatch`."""
        if item.mixing is not None:
            return mixed_batch(tensors["images"], tensors["labels"], draw=item.mixing)
        return tensors["images"], tensors["labels"]

    @property
    def _augments_batches(self) -> bool:
        """Whether images are small and of one size, so that they are augmented together."""
        return (
            self.augmentation_seed is not None
            and self.transform.augment_batch is not None
            and self.index.image_shape is not None
        )

    def _load_together(
        self, part: Part, arrays: Mapping[str, NDArray[Any]], reader: SampleReader
    ) -> None:
        assert self.augmentation_seed is not None
        assert self.transform.augment_batch is not None
        assert self.index.image_shape is not None
        sample_ids = np.array(part.sample_ids)
        stored: Images
        if isinstance(reader, ResidentSamples):
            stored = reader.images[sample_ids]
            arrays["labels"][part.rows] = reader.labels[sample_ids]
        else:
            stored = np.empty((len(part.rows), *self.index.image_shape), np.uint8)
            for place, sample in reader.read(part.sample_ids, epoch=part.epoch):
                stored[place] = sample.image
                arrays["labels"][part.rows[place]] = sample.label
        words = augmentation_words(
            self.augmentation_seed,
            epochs=part.epoch,
            sample_ids=sample_ids,
            num_words=self.transform.augment_batch.num_words,
        )
        arrays["images"][part.rows] = self.transform.augment_batch.augment(stored, words)

    def _transformed(self, image: Image, sample_id: int, epoch: int) -> Image:
        if self.augmentation_seed is None:
            return self.transform.prepare(image)
        return augmented(
            self.transform.augment,
            image,
            seed=self.augmentation_seed,
            epoch=epoch,
            sample_id=sample_id,
        )

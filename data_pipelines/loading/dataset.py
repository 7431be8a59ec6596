"""The part of loading that runs in the workers: from sample ids to one block of images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from data_pipelines.decoding import Sample
from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.order import augmentation_rng
from data_pipelines.reading import ShardReader
from data_pipelines.transforms import TransformPreset
from data_pipelines.transforms.presets import Image

# (epoch, sample id). The epoch travels with the id, so that a worker has no state to get stale.
SampleRequest = tuple[int, int]
# Images, uint8 (samples, height, width, channels), and labels, int64 (samples,).
Batch = tuple[torch.Tensor, torch.Tensor]


class BatchDataset(Dataset[Batch]):
    """Reads, decodes and transforms the samples of a batch into one block of memory."""

    def __init__(
        self, index: SampleIndex, *, transform: TransformPreset, augmentation_seed: int | None
    ) -> None:
        """Prepares reading; no file is opened yet.

        Args:
            index: The split to read.
            transform: What is done to the images.
            augmentation_seed: Augments with random streams from this seed; None is for evaluation.
        """
        self._index = index
        self._reader = ShardReader(index)
        self._transform = transform
        self._augmentation_seed = augmentation_seed

    def __getitems__(self, requests: Sequence[SampleRequest]) -> Batch | UserError:
        """Returns the batch, in the order of `requests`; or what is wrong with the data.

        The error is returned and not raised: raised in a worker, it would reach the user wrapped in
        that worker's traceback.
        """
        try:
            return self._load(requests)
        except UserError as error:
            return error

    def _load(self, requests: Sequence[SampleRequest]) -> Batch:
        labels = torch.empty(len(requests), dtype=torch.int64)
        images = np.empty(0, dtype=np.uint8)
        for place, sample in self._reader.read([sample_id for _, sample_id in requests]):
            image = self._transformed(sample, requests[place])
            if images.ndim == 1:
                images = np.empty((len(requests), *image.shape), dtype=np.uint8)
            if images.shape[1:] != image.shape:
                raise UserError(
                    f"{self._index.directory}: sample {self._index.key(requests[place][1])!r} has "
                    f"the shape {image.shape} after the transform {self._transform.name!r}, but "
                    f"another of its batch {images.shape[1:]}; use a transform that gives "
                    "all images one size"
                )
            images[place] = image
            labels[place] = sample.label
        return torch.from_numpy(images), labels

    def _transformed(self, sample: Sample, request: SampleRequest) -> Image:
        if self._augmentation_seed is None:
            return self._transform.prepare(sample.image)
        rng = augmentation_rng(self._augmentation_seed, *request)
        return self._transform.augment(sample.image, rng)

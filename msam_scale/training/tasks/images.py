"""Classification of images."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn

from data_pipelines import Split, TransformPreset, normalise
from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch
from msam_scale.layers.modes import evaluating
from msam_scale.losses import LossFunction
from msam_scale.models.weights import first_lines
from msam_scale.training.tasks.image_loss import image_loss
from msam_scale.training.tasks.interface import Task

# What compressed images are decoded to.
_NUM_COLOURS = 3


class ImageTask(Task):
    """Images of one size, stored as uint8 and normalised on the device.

    Args:
        train: the training data.
        transform: what is done to the images.

    Raises:
        UserError: the images would differ in size, or have other channels than the transform.
    """

    kind = "images"

    def __init__(self, train: Split, *, transform: TransformPreset) -> None:
        super().__init__(num_classes=train.index.num_classes)
        self._train_index = train.index
        self._transform = transform
        self.image_shape = _image_shape(train, transform)
        """(height, width, channels) after the transform."""
        blank, _ = self.blank_batch(device=torch.device("cpu"))
        normalise(blank, preset=transform, dtype=torch.float32)

    @property
    def transform(self) -> TransformPreset:
        """What is done to the images."""
        return self._transform

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return self.image_shape[2]

    def check_validation(self, split: Split) -> None:
        """Refuses images of another number of classes or shape."""
        for what in ("num_classes", "image_shape"):
            val, train = getattr(split.index, what), getattr(self._train_index, what)
            if val != train:
                raise UserError(
                    f"{split.index.directory}: its {what} is {val}, that of the training data "
                    f"{train}; validation data of the same data set works"
                )

    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that does not take images of this size; a black one shows it."""
        height, width, channels = self.image_shape
        try:
            with evaluating(model), torch.no_grad():
                model(torch.zeros(1, channels, height, width))
        except Exception as error:  # of a model that has taken other arguments than it can use
            raise UserError(
                f"{type(model).__name__} does not take the images of {height} × {width} pixels "
                f"that data.transform: {self._transform.name} makes: {first_lines(error)}; another "
                "transform works, or the size in model.args (img_size for many models of timm)"
            ) from error

    def loss_fn(self, *, dtype: torch.dtype, label_smoothing: float) -> LossFunction:
        """See `image_loss`; mixed batches included."""
        return image_loss(
            self._transform,
            dtype=dtype,
            num_classes=self.num_classes,
            label_smoothing=label_smoothing,
        )

    def logits(
        self, predict: Callable[..., Any], batch: Batch, *, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (images, labels), images uint8 (samples, height, width, channels)."""
        images, labels = batch
        return predict(normalise(images, preset=self._transform, dtype=dtype)), labels

    def blank_batch(self, *, device: torch.device) -> Batch:
        """A black image of class 0."""
        images = torch.zeros((1, *self.image_shape), dtype=torch.uint8, device=device)
        return images, torch.zeros(1, dtype=torch.int64, device=device)

    def num_bytes(self, num_samples: int) -> int:
        """One byte a value."""
        return num_samples * prod(self.image_shape)


def _image_shape(split: Split, transform: TransformPreset) -> tuple[int, int, int]:
    index = split.index
    if transform.size is not None:
        channels = _NUM_COLOURS if index.image_shape is None else index.image_shape[2]
        return (*transform.size, channels)
    if index.image_shape is None:
        raise UserError(
            f"{index.directory}: its images differ in size, and data.transform: {transform.name} "
            "does not bring them to one; inception_vit, inception_tv or inception_sam works"
        )
    return index.image_shape

"""What a run asks of its data, whatever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from data_pipelines import Split, TransformPreset
from msam_scale.batch_tree import Batch
from msam_scale.losses import LossFunction


class Task(ABC):
    """Classification of samples of one kind: how a stored batch meets the model.

    Attributes:
        kind: what the samples are, in words; the models of a source take one kind.
        num_classes: outputs of the model.
        ignored_settings: that have no effect on samples of this kind.
    """

    kind: ClassVar[str]
    ignored_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, num_classes: int) -> None:
        self.num_classes = num_classes

    @property
    @abstractmethod
    def transform(self) -> TransformPreset | None:
        """What the loaders do to the samples; None for text."""

    @property
    def num_channels(self) -> int | None:
        """Channels of the images, where samples are images."""
        return None

    def description(self) -> dict[str, Any]:
        """What a model has to be built for, as keyword arguments of a `ModelRequest`."""
        return {
            "kind": self.kind,
            "num_classes": self.num_classes,
            "num_channels": self.num_channels,
        }

    @abstractmethod
    def check_validation(self, split: Split) -> None:
        """Refuses validation data of another kind than the training data.

        Raises:
            UserError: classes, shapes or tokens differ.
        """

    @abstractmethod
    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that some samples would not fit.

        Raises:
            UserError: says which, and what would work.
        """

    @abstractmethod
    def loss_fn(self, *, dtype: torch.dtype, label_smoothing: float) -> LossFunction:
        """Cross-entropy, a mean over samples, for what the training loader yields.

        Args:
            dtype: of the model's real inputs.
            label_smoothing: weight of the uniform distribution in the target, in [0, 1).
        """

    @abstractmethod
    def logits(
        self, predict: Callable[..., Any], batch: Batch, *, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (samples, num_classes) and labels (samples,) of a batch of the evaluation loader.

        Args:
            predict: the model's forward.
            batch: on the model's device.
            dtype: of the model's real inputs.
        """

    @abstractmethod
    def blank_batch(self, *, device: torch.device) -> Batch:
        """A batch of one sample whose answer nobody counts."""

    @abstractmethod
    def num_bytes(self, num_samples: int) -> int:
        """At most so many bytes do so many samples take, decoded."""

"""The loss of a batch of stored images: normalised, mixed and compared on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from data_pipelines import MixedBatch, TransformPreset, mix_images, normalise, soft_targets
from msam_scale.batch_tree import Batch
from msam_scale.losses import Loss, LossFunction, default_loss


def image_loss(
    transform: TransformPreset, *, dtype: torch.dtype, num_classes: int, label_smoothing: float
) -> LossFunction:
    """Cross-entropy, a mean over samples, for what `MicroBatchLoader` yields of images.

    Args:
        transform: gives mean and standard deviation.
        dtype: of the model's inputs.
        num_classes: outputs of the model.
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).
    """
    plain = default_loss(label_smoothing=label_smoothing)

    def on_images(model: torch.nn.Module, batch: Batch) -> Loss:
        if not isinstance(batch, MixedBatch):
            images, labels = batch
            return plain(model, (normalise(images, preset=transform, dtype=dtype), labels))
        inputs = mix_images(
            normalise(batch.images, preset=transform, dtype=dtype),
            partners=normalise(batch.partner_images, preset=transform, dtype=dtype),
            weights=batch.weights,
            boxes=batch.boxes,
        )
        targets = soft_targets(
            batch.labels,
            num_classes=num_classes,
            smoothing=label_smoothing,
            partner_labels=batch.partner_labels,
            weights=batch.weights,
        )
        logits = model(inputs)
        return F.cross_entropy(logits, targets.to(logits.dtype), reduction="sum") / len(targets)

    return on_images

"""The loss of a batch where the caller gives none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch
from msam_scale.passes import LossFunction


def default_loss(*, label_smoothing: float) -> LossFunction:
    """Cross-entropy for `(inputs, labels)`; `model(**batch).loss` for a dict.

    Args:
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).
    """

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        if isinstance(batch, Mapping):
            value = model(**batch).loss
            if value is None:
                raise UserError(
                    f"the model returned no loss for a batch with the keys {', '.join(batch)}; "
                    "add labels to the batch, or pass loss_fn to initialize"
                )
            if label_smoothing:
                raise UserError(
                    f"training.label_smoothing: {label_smoothing} has no effect on a loss that the "
                    "model computes itself; pass loss_fn to initialize, or remove it"
                )
            return value  # type: ignore[no-any-return]
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise UserError(
                "the default loss takes (inputs, labels) or a dict; pass loss_fn to initialize"
            )
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, label_smoothing=label_smoothing)

    return loss

"""The loss of a batch where the caller gives none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch
from msam_scale.passes import LossFunction

_logger = logging.getLogger("msam_scale")

# What torch and transformers take for "no label".
_IGNORED = -100


def default_loss(*, label_smoothing: float) -> LossFunction:
    """Cross-entropy for `(inputs, labels)`; `model(**batch).loss` for a dict.

    A label of -100 counts as a loss of 0. A model's own loss that is a mean over something other
    than samples (tokens with a label, say) weighs samples by chunk; where labels of -100 show this,
    it is said once.

    Args:
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).
    """
    looked_at_labels = False

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        nonlocal looked_at_labels
        if isinstance(batch, Mapping):
            if not looked_at_labels:
                looked_at_labels = True
                _say_where_chunks_matter(batch.get("labels"))
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
        total = F.cross_entropy(
            model(inputs), labels, label_smoothing=label_smoothing, reduction="sum"
        )
        # Not torch's mean, which leaves labels of -100 out of the count and so would weigh the
        # samples of a chunk by how many of them have one.
        return total / (len(labels) if labels.is_floating_point() else labels.numel())

    return loss


def _say_where_chunks_matter(labels: Any) -> None:
    if isinstance(labels, torch.Tensor) and labels.dim() > 1 and bool((labels == _IGNORED).any()):
        _logger.warning(
            "Some labels are -100: if the model's loss is a mean over the others, samples weigh "
            "differently with batch.chunk and the number of ranks. A loss_fn that returns the mean "
            "over samples is independent of both."
        )

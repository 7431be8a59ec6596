"""What a loss function returns, and the loss of a batch where the caller gives none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from data_pipelines.errors import UserError, a_few
from msam_scale.batch_tree import Batch

Loss = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""The mean over the samples given; or, where samples weigh differently, the pair of the weighted
sum and the total weight, both scalars."""

LossFunction = Callable[[Any, Batch], Loss]
"""`loss_fn(model, batch)`: the loss of the samples given."""

IGNORED_LABEL = -100
"""What torch and transformers take for "no label"."""


@dataclass(frozen=True)
class LossTerm:
    """The loss of some samples, in a form that adds up over the parts of a micro-batch.

    Attributes:
        value: the mean over the samples, or their weighted sum.
        multiplicity: `value * multiplicity` is the sum: the number of samples, or 1.
        weight: the total weight, a float64 scalar; None where each sample counts once.
    """

    value: torch.Tensor
    multiplicity: int
    weight: torch.Tensor | None

    @classmethod
    def of(cls, returned: Any, *, num_samples: int) -> LossTerm:
        """Reads what a loss function returned for so many samples.

        Raises:
            UserError: it is neither a scalar tensor nor a pair of them.
        """
        if isinstance(returned, tuple) and len(returned) == 2:
            value, weight = returned
            _check_scalar(value, "the sum of the samples' losses")
            _check_scalar(weight, "their total weight")
            return cls(value, multiplicity=1, weight=weight.detach().double())
        _check_scalar(returned, "the mean loss of the samples")
        return cls(returned, multiplicity=num_samples, weight=None)

    @property
    def mean(self) -> torch.Tensor:
        """The weighted mean over the samples."""
        return self.value if self.weight is None else self.value / self.weight

    @property
    def total_weight(self) -> torch.Tensor | int:
        """What `mean` counts for beside the means of other samples."""
        return self.multiplicity if self.weight is None else self.weight


def _check_scalar(value: Any, what: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        raise UserError(
            f"loss_fn returned a {type(value).__name__}{shape} as {what}; expected a tensor "
            "without dimensions: the mean loss of the samples, or a pair (sum, weight) of them"
        )


def default_loss(*, label_smoothing: float) -> LossFunction:
    """Cross-entropy for `(inputs, labels)`; `model(**batch).loss` for a dict.

    In a pair, a label of -100 counts as a loss of 0. A model's own loss is the mean over the labels
    that are not -100, as models of transformers compute it, so samples weigh by how many they have.

    Args:
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).
    """

    def loss(model: Any, batch: Batch) -> Loss:
        if isinstance(batch, Mapping):
            value = model(**batch).loss
            if value is None:
                raise UserError(
                    f"the model returned no loss for a batch with the keys {a_few(batch)}; "
                    "add labels to the batch, or pass loss_fn to initialize"
                )
            if label_smoothing:
                raise UserError(
                    f"training.label_smoothing: {label_smoothing} has no effect on a loss that the "
                    "model computes itself; pass loss_fn to initialize, or remove it"
                )
            return _weighed(value, labels=batch.get("labels"), model=model)
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


def _weighed(mean: torch.Tensor, *, labels: Any, model: Any) -> Loss:
    """A model's mean over its labels as a sum and their number."""
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or not labels.dim():
        return mean  # scores and the like: a mean over samples
    if labels.dim() > 1 and _predicts_the_next_token(model):
        labels = labels[..., 1:]
    count = (labels != IGNORED_LABEL).sum()
    # Without any label the mean is 0 / 0; such samples count for nothing.
    return torch.where(count > 0, mean, 0.0) * count, count


def _predicts_the_next_token(model: Any) -> bool:
    """Whether a model of transformers compares each label with what the token before it gave."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    inside = getattr(model, "module", model)  # of a backend's wrapper
    names = [base.__name__ for base in type(inside).__mro__]
    # XLNet's labels are already those of the positions that it predicts.
    return any(re.search("CausalLM|(?<!XLNet)LMHead", name) for name in names)

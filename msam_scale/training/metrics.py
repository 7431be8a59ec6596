"""What is measured of a classifier, each from the counts of its right and wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.errors import UserError

Answers = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""(true class, answered class, how many samples), one row a pair of classes that occurs."""


def _accuracy(answers: Answers) -> float:
    labels, predictions, counts = answers
    return float(counts[labels == predictions].sum() / counts.sum())


# scikit-learn takes seconds to import, which runs without its metrics do without.


def _f1(answers: Answers) -> float:
    from sklearn.metrics import f1_score

    labels, predictions, counts = answers
    # Without a true or answered positive the score is 0, as GLUE counts it.
    return float(f1_score(labels, predictions, sample_weight=counts, zero_division=0.0))


def _matthews_correlation(answers: Answers) -> float:
    from sklearn.metrics import matthews_corrcoef

    labels, predictions, counts = answers
    return float(matthews_corrcoef(labels, predictions, sample_weight=counts))


CLASSIFICATION_METRICS: dict[str, Callable[[Answers], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
}
_OF_TWO_CLASSES = ("f1",)
# Beyond, the counts of all pairs of classes would take hundreds of megabytes on every rank.
_MOST_PAIRED_CLASSES = 4096


def check_metrics(names: Iterable[str], *, num_classes: int) -> None:
    """Refuses metrics that are not defined for so many classes.

    Raises:
        UserError: one is of two classes and there are others.
    """
    for name in names:
        if name in _OF_TWO_CLASSES and num_classes != 2:
            works = [one for one in CLASSIFICATION_METRICS if one not in _OF_TWO_CLASSES]
            raise UserError(
                f"training.metrics: {name} is of two classes, and the data have {num_classes}; "
                f"{' and '.join(works)} work"
            )
        if name != "accuracy" and num_classes > _MOST_PAIRED_CLASSES:
            raise UserError(
                f"training.metrics: {name} is for at most {_MOST_PAIRED_CLASSES} classes, and the "
                f"data have {num_classes}; accuracy works"
            )


class AnswerCounts:
    """Counts answers on the device: no step of an evaluation waits for it.

    Attributes:
        counts: float64, samples by true and answered class, (num_classes²,); of very many classes
            right and wrong answers, (2²,). Sums over ranks are sums of these.
    """

    def __init__(self, *, num_classes: int, device: torch.device) -> None:
        self._num_outputs = num_classes
        self._is_paired = num_classes <= _MOST_PAIRED_CLASSES
        self._num_classes = num_classes if self._is_paired else 2
        self.counts = torch.zeros(self._num_classes**2, dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Counts a batch: logits (samples, num_classes), labels (samples,)."""
        assert logits.shape[1] == self._num_outputs, "the model answers with the data's classes"
        answers = logits.argmax(dim=1)
        if not self._is_paired:
            labels, answers = torch.zeros_like(labels), (answers != labels).long()
        pairs = labels * self._num_classes + answers
        self.counts.index_add_(0, pairs, torch.ones_like(pairs, dtype=torch.float64))

    def answers(self) -> Answers:
        """The pairs of classes that occur; waits for the device."""
        counts = self.counts.cpu().numpy().astype(np.int64)
        pairs = np.flatnonzero(counts)
        return pairs // self._num_classes, pairs % self._num_classes, counts[pairs]

"""Classification of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from data_pipelines import Split
from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch
from msam_scale.passes import LossFunction
from msam_scale.training.tasks.interface import Task

_BYTES_OF_A_TOKEN = 8


class TextTask(Task):
    """Tokenised texts, padded on the right to the longest of a micro-batch.

    Args:
        train: the training data.
    """

    kind = "text"
    ignored_settings = ("training.mixup", "training.cutmix", "data.resident")

    def __init__(self, train: Split) -> None:
        super().__init__(num_classes=train.index.num_classes)
        lengths, tokens = train.index.lengths, train.index.meta.tokens
        assert lengths is not None, "texts have lengths"
        assert tokens is not None, "texts have tokens"
        self._tokens = tokens
        self._max_length = int(lengths.max())
        self._mean_length = round(float(lengths.mean()))

    @property
    def transform(self) -> None:
        """Nothing is done to tokens."""
        return

    def check_validation(self, split: Split) -> None:
        """Refuses texts of another number of classes, or with tokens of another kind."""
        index = split.index
        for what, val, train in (
            ("num_classes", index.num_classes, self.num_classes),
            ("tokens", index.meta.tokens, self._tokens),
        ):
            if val != train:
                raise UserError(
                    f"{index.directory}: its {what} is {val}, that of the training data {train}; "
                    "validation data of the same data set works"
                )

    def loss_fn(self, *, dtype: torch.dtype, label_smoothing: float) -> LossFunction:
        """Cross-entropy of the model's logits: the models' own losses know no label smoothing."""

        def on_texts(model: Any, batch: Batch) -> torch.Tensor:
            logits, labels = _logits(model, batch)
            total = F.cross_entropy(
                logits, labels, label_smoothing=label_smoothing, reduction="sum"
            )
            return total / len(labels)

        return on_texts

    def logits(
        self, predict: Callable[..., Any], batch: Batch, *, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a dict with the tokens' rows, `attention_mask` and `labels`."""
        return _logits(predict, batch)

    def blank_batch(self, *, device: torch.device) -> Batch:
        """A text of mean length."""
        names = (*self._tokens.rows, "attention_mask")
        shape = (1, self._mean_length)
        batch = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name in names}
        batch["attention_mask"].fill_(1)
        return {**batch, "labels": torch.zeros(1, dtype=torch.int64, device=device)}

    def num_bytes(self, num_samples: int) -> int:
        """As if all texts were as long as the longest."""
        num_rows = len(self._tokens.rows) + 1
        return num_samples * self._max_length * num_rows * _BYTES_OF_A_TOKEN


def _logits(
    predict: Callable[..., Any], batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return predict(**inputs).logits, batch["labels"]

"""Classification of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data_pipelines import EvaluationLoader, Split
from data_pipelines.errors import UserError
from data_pipelines.preparation.record import DatasetRecord
from msam_scale.batch_tree import Batch
from msam_scale.losses import LossFunction
from msam_scale.training.tasks.interface import Task
from msam_scale.training.tasks.text_checks import check_tokens

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
        self._train, self._tokens = train, tokens
        self._max_length = int(lengths.max())

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
        assert index.lengths is not None, "texts have lengths"
        self._max_length = max(self._max_length, int(index.lengths.max()))

    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that the tokens do not fit; see `check_tokens`."""
        check_tokens(
            model,
            rows=self._tokens.rows,
            pad_token_id=self._tokens.pad_token_id,
            max_length=self._max_length,
            vocabulary=_vocabulary_size(self._train),
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
        """The first text: some models refuse what is none."""
        loader = EvaluationLoader(
            self._train.index,
            batch_size=1,
            rank=0,
            num_ranks=1,
            transform=None,
            num_workers=0,
            source=self._train.source,
            sample_ids=np.zeros(1, np.int64),
        )
        (batch,) = loader
        return {name: tensor.to(device, copy=True) for name, tensor in batch.items()}

    def num_bytes(self, num_samples: int) -> int:
        """As if all texts were as long as the longest."""
        num_rows = len(self._tokens.rows) + 1
        return num_samples * self._max_length * num_rows * _BYTES_OF_A_TOKEN


def _vocabulary_size(train: Split) -> int | None:
    """How many tokens the tokenizer has, where the data's record is there."""
    try:
        record = DatasetRecord.read(train.index.directory.parent)
    except UserError:
        return None
    return None if record.tokenizer is None else record.tokenizer.vocab_size


def _logits(
    predict: Callable[..., Any], batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return predict(**inputs).logits, batch["labels"]

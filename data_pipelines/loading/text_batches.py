"""Batches of text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from data_pipelines.index import TokenMeta
from data_pipelines.loading.batchers import Batch, SampleReader
from data_pipelines.loading.items import Item, Part
from data_pipelines.loading.layout import BatchLayout, Field


@dataclass(frozen=True)
class TextBatcher:
    """Tokens, `attention_mask` and `labels`, all int64; texts are filled up on the right.

    Attributes:
        tokens: What the rows of a sample's tokens are.
    """

    tokens: TokenMeta

    def layout(self, num_rows: int, *, length: int) -> BatchLayout:
        """Returns how a batch lies in memory."""
        names = (*self.tokens.rows, "attention_mask")
        return BatchLayout(
            (
                Field("labels", torch.int64, (num_rows,)),
                *(Field(name, torch.int64, (num_rows, length)) for name in names),
            )
        )

    def load(self, part: Part, *, arrays: Mapping[str, NDArray[Any]], reader: SampleReader) -> None:
        """Loads texts into their rows."""
        for place, sample in reader.read(part.sample_ids, epoch=part.epoch):
            row, length = part.rows[place], sample.tokens.shape[1]
            arrays["labels"][row] = sample.label
            arrays["attention_mask"][row, :length] = 1
            arrays["attention_mask"][row, length:] = 0
            for name, tokens in zip(self.tokens.rows, sample.tokens, strict=True):
                arrays[name][row, :length] = tokens
                filler = self.tokens.pad_token_id if name == "input_ids" else 0
                arrays[name][row, length:] = filler

    def batch(self, tensors: Mapping[str, torch.Tensor], item: Item) -> Batch:
        """Returns the arrays by name, as models of `transformers` take them."""
        names = (*self.tokens.rows, "attention_mask", "labels")
        return {name: tensors[name] for name in names}

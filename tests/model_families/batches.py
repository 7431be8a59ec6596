"""Mini-batches for models of transformers: padded, masked, with labels that are left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tests.model_families.family import BATCH_SIZE, Batch

VOCABULARY, NUM_LABELS = 40, 3
_NUM_TOKENS = 6
_IGNORED = -100


def _tokens(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Of other lengths for each sample, padded on the right."""
    tokens = torch.randint(3, VOCABULARY, (BATCH_SIZE, _NUM_TOKENS), generator=generator)
    lengths = torch.randint(3, _NUM_TOKENS + 1, (BATCH_SIZE, 1), generator=generator)
    mask = (torch.arange(_NUM_TOKENS) < lengths).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def _next_tokens(generator: torch.Generator) -> Batch:
    batch = _tokens(generator)
    return {
        **batch,
        "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, _IGNORED),
    }


def _masked_tokens(generator: torch.Generator) -> Batch:
    batch = _tokens(generator)
    hidden = torch.rand(batch["input_ids"].shape, generator=generator) < 0.4
    hidden[:, 0] = True
    hidden &= batch["attention_mask"] == 1
    labels = batch["input_ids"].masked_fill(~hidden, _IGNORED)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 3), "labels": labels}


def _token_classes(generator: torch.Generator) -> Batch:
    batch = _tokens(generator)
    return {
        **batch,
        "labels": (batch["input_ids"] % NUM_LABELS).masked_fill(
            batch["attention_mask"] == 0, _IGNORED
        ),
    }


def _classes(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(NUM_LABELS, (BATCH_SIZE,), generator=generator)


def _sentences(generator: torch.Generator) -> Batch:
    return {**_tokens(generator), "labels": _classes(generator)}


def _spans(generator: torch.Generator) -> Batch:
    starts = torch.randint(_NUM_TOKENS, (2, BATCH_SIZE), generator=generator)
    return {**_tokens(generator), "start_positions": starts[0], "end_positions": starts[1]}


def _answers(generator: torch.Generator) -> torch.Tensor:
    return _next_tokens(generator)["labels"]


def _translations(generator: torch.Generator) -> Batch:
    return {**_tokens(generator), "labels": _answers(generator)}


def _noise(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(BATCH_SIZE, *shape, generator=generator, dtype=torch.float64)


def _images(size: int, generator: torch.Generator) -> Batch:
    pixels = _noise(3, size, size, generator=generator)
    return {"pixel_values": pixels, "labels": _classes(generator)}


def _waves(generator: torch.Generator) -> Batch:
    return {"input_values": _noise(200, generator=generator), "labels": _classes(generator)}


def _spectra(generator: torch.Generator) -> Batch:
    return {"input_values": _noise(24, 16, generator=generator), "labels": _classes(generator)}


def _speech(name: str, shape: tuple[int, int], generator: torch.Generator) -> Batch:
    return {name: _noise(*shape, generator=generator), "labels": _answers(generator)}


def _pairs(generator: torch.Generator) -> Batch:
    return {
        **_tokens(generator),
        "pixel_values": _noise(3, 32, 32, generator=generator),
        "return_loss": True,
    }


def _num_labels(batch: Batch) -> float:
    return float((batch["labels"] != _IGNORED).sum())


def _num_next(batch: Batch) -> float:
    return float((batch["labels"][:, 1:] != _IGNORED).sum())


# Batches, and what the mean over some of their samples counts for.
TASKS: dict[str, tuple[Callable[[torch.Generator], Batch], Callable[[Batch], float]]] = {
    "next token": (_next_tokens, _num_next),
    "permuted tokens": (_next_tokens, _num_labels),
    "masked tokens": (_masked_tokens, _num_labels),
    "token classes": (_token_classes, _num_labels),
    "sentence classes": (_sentences, _num_labels),
    "answer spans": (_spans, lambda batch: len(batch["input_ids"])),
    "translation": (_translations, _num_labels),
    "images": (partial(_images, 32), _num_labels),
    "images of 64": (partial(_images, 64), _num_labels),
    "images of 128": (partial(_images, 128), _num_labels),
    "waves": (_waves, _num_labels),
    "spectra": (_spectra, _num_labels),
    "transcription": (partial(_speech, "input_features", (8, 32)), _num_labels),
    "transcription of frames": (partial(_speech, "input_features", (32, 8)), _num_labels),
    "image and text": (_pairs, lambda batch: len(batch["input_ids"])),
}

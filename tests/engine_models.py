"""Small models that are hard to train right, and mini-batches for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from msam_scale.models.wide_resnet import WideResNet

BATCH_SIZE = 32
NUM_CLASSES = 5


class OddModel(nn.Module):
    """LayerNorm, attention, convolution, and every kind of parameter that needs care.

    Odd sizes leave gaps in flat buffers; `scale` has no dimensions; `mix` is used twice (tied);
    `rare` serves only few samples, so whole micro-batches, and some ranks, leave it without a
    gradient, unless the model `uses_all`; `idle` is never used; `frozen` is not trained; `filters`
    is laid out channels last.
    """

    def __init__(self, *, uses_all: bool = False) -> None:
        super().__init__()
        self.uses_all = uses_all
        self.filters = nn.Conv2d(3, 7, kernel_size=3, stride=2).to(
            memory_format=torch.channels_last
        )
        self.places = nn.Parameter(torch.randn(1, 9, 7) * 0.1)
        self.norm1 = nn.LayerNorm(7)
        self.query, self.key, self.value = (nn.Linear(7, 7) for _ in range(3))
        self.mix = nn.Linear(7, 7, bias=False)
        self.tied = nn.Linear(7, 7)
        self.tied.weight = self.mix.weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.rare = nn.Linear(7, 7)
        self.idle = nn.Parameter(torch.randn(11))
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.norm2 = nn.LayerNorm(7)
        self.head = nn.Linear(7, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.filters(images).flatten(2).transpose(1, 2) + self.places
        normal = self.norm1(tokens)
        scores = self.query(normal) @ self.key(normal).transpose(1, 2) / 7**0.5
        tokens = tokens + self.mix(scores.softmax(-1) @ self.value(normal))
        tokens = tokens + self.scale * self.tied(torch.tanh(self.frozen(tokens)))
        features = self.norm2(tokens).mean(1)
        chosen = images[:, 0, 0, 0] > 1.2
        if self.uses_all:
            return self.head(features + chosen[:, None] * self.rare(features))  # type: ignore[no-any-return]
        if chosen.any():
            extra = self.rare(features[chosen]).to(features.dtype)
            features = features.index_add(0, chosen.nonzero().flatten(), extra)
        return self.head(features)  # type: ignore[no-any-return]


def _wide_resnet() -> nn.Module:
    return WideResNet(depth=10, width=1, num_classes=NUM_CLASSES)


class SmoothNorms(nn.Module):
    """Convolutions and batch norms without a kink, so that float32's rounding is not amplified."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, kernel_size=3, stride=2)
        self.norm1 = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.norm1(self.first(images)))
        features = features + torch.tanh(self.norm2(self.second(features)))
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def _dropout_vit() -> nn.Module:
    return VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=12,
        depth=2,
        num_heads=2,
        num_classes=NUM_CLASSES,
        drop_rate=0.2,
        pos_drop_rate=0.1,
        proj_drop_rate=0.3,
        drop_path_rate=0.4,
    )


class TextClassifier(nn.Module):
    """A BERT encoder from transformers, with dropout, that reads an image's pixels as tokens.

    Given labels it returns an output with its own loss, as models of transformers do.
    """

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.0,  # inside fused attention, keyed by slice
        )
        self.encoder = BertModel(config)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        tokens = (images.flatten(1)[:, :12] * 12 + 25).long().clamp(0, 49)
        logits = self.head(self.encoder(tokens).last_hidden_state[:, 0])
        if labels is None:
            return logits
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, NUM_CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "odd": OddModel,
    "odd, all of it used": partial(OddModel, uses_all=True),
    "bert": TextClassifier,
    "wide_resnet": _wide_resnet,
    "smooth_norms": SmoothNorms,
    "dropout_vit": _dropout_vit,
    "linear": _linear,
}


def build_model(name: str, *, seed: int = 0) -> nn.Module:
    """A model in float32 with weights that follow from the seed; the global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def mini_batch(step: int, *, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """The mini-batch of a step: images (32, 3, 8, 8) and labels (32,)."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(BATCH_SIZE, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)
    return images.to(dtype), labels


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples of eight features each, float32, and labels of five classes."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 8, generator=generator), torch.randint(5, (8,), generator=generator)


def cross_entropy(model: Any, batch: Any) -> torch.Tensor:
    """The mean cross-entropy of `(images, labels)`."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)

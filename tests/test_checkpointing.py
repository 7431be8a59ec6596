"""Activation checkpointing computes forwards again in the backward; the result stays the same."""

from __future__ import annotations

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from rank_pool import OnRanks
from timm.layers.drop import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from msam_scale.errors import UserError
from msam_scale.initialization import initialize


class Blocks(nn.Module):
    """Batch norm, dropout and stochastic depth in two blocks that may be checkpointed."""

    def __init__(self, *, checkpointed: bool, reentrant: bool = False) -> None:
        super().__init__()
        self.checkpointed, self.reentrant = checkpointed, reentrant
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.3))
            for _ in range(2)
        )
        self.paths = nn.ModuleList(DropPath(0.3) for _ in range(2))
        self.head = nn.Linear(6, 5)

    def _block(self, features: torch.Tensor, index: int) -> torch.Tensor:
        return features + self.paths[index](self.blocks[index](features).tanh())  # type: ignore[no-any-return]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        for index in range(2):
            if self.checkpointed:
                features = checkpoint(self._block, features, index, use_reentrant=self.reentrant)
            else:
                features = self._block(features, index)
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def _trained(model: nn.Module, *, norm_samples: int | None) -> dict[str, torch.Tensor]:
    config = settings(micro_batches=4, norm_samples=norm_samples, chunk=4)
    engine = initialize(model, config=config, loss_fn=cross_entropy)
    for step in range(3):
        engine.train_step(own_part(engine, mini_batch(step)))
    return engine.full_state_dict()


def _train_blocks(*, checkpointed: bool, reentrant: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return _trained(Blocks(checkpointed=checkpointed, reentrant=reentrant), norm_samples=2)


def _train_vit(*, checkpointed: bool) -> dict[str, torch.Tensor]:
    model = build_model("dropout_vit")
    model.set_grad_checkpointing(checkpointed)  # type: ignore[operator]
    return _trained(model, norm_samples=None)


@pytest.mark.layouts
@pytest.mark.parametrize(
    ("train", "size"), [(_train_blocks, 1), (_train_blocks, 2), (_train_vit, 1)]
)
def test_recomputing_changes_nothing(train: object, size: int, on_ranks: OnRanks) -> None:
    plain = on_ranks(size, train, checkpointed=False)[0]
    again = on_ranks(size, train, checkpointed=True)[0]
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-12, atol=1e-14)


class SharedNorm(nn.Module):
    """One batch norm, called inside a checkpoint and again outside."""

    def __init__(self, *, checkpointed: bool) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def _inner(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stem(images)).exp()  # type: ignore[no-any-return]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.checkpointed:
            features = checkpoint(self._inner, images, use_reentrant=False)
        else:
            features = self._inner(images)
        return self.head(self.norm(features).tanh().mean((2, 3)))  # type: ignore[no-any-return]


def test_a_recomputed_call_does_not_count_twice() -> None:
    """Else the inner call would weigh twice as much as the outer one in the running statistics."""
    states = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        states.append(_trained(SharedNorm(checkpointed=checkpointed), norm_samples=2))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-12, atol=1e-14)


class CalledTwice(nn.Module):
    """One dropout layer, called twice inside a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(192, 5), nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return checkpoint(  # type: ignore[no-any-return]
            lambda x: self.dropout(self.layer(self.dropout(x)).sin()),
            images.flatten(1),
            use_reentrant=False,
        )


def test_a_layer_called_twice_cannot_be_recomputed() -> None:
    engine = initialize(CalledTwice(), config=settings(micro_batches=2), loss_fn=cross_entropy)
    with pytest.raises(UserError, match="give each call a layer of its own"):
        engine.train_step(mini_batch(0))


class Tower(nn.Module):
    """One layer used in two re-entrant checkpoints: its gradient arrives twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Linear(192, 5), nn.Linear(5, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images.flatten(1))
        for _ in range(2):
            features = checkpoint(self.layer, features, use_reentrant=True).tanh()
        return features  # type: ignore[no-any-return]


def _reentrant_is_refused() -> None:
    engine = initialize(Tower(), config=settings(micro_batches=2), loss_fn=cross_entropy)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        engine.train_step(own_part(engine, mini_batch(0)))


def test_gradients_that_arrive_twice_are_refused_where_they_are_sent(on_ranks: OnRanks) -> None:
    on_ranks(2, _reentrant_is_refused)


def test_checkpointing_keeps_what_a_run_reports() -> None:
    plain = engine_for(Run(settings(micro_batches=2), model="dropout_vit"))
    again = engine_for(Run(settings(micro_batches=2), model="dropout_vit"))
    again.module.set_grad_checkpointing(True)  # type: ignore[operator]
    one, other = plain.train_step(mini_batch(0)), again.train_step(mini_batch(0))
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert one.ascent_norm == pytest.approx(other.ascent_norm, rel=1e-12)

"""An error in the middle of a step leaves the weights as they were, and the next step right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings, with_small_buckets
from rank_pool import OnRanks
from torch import nn

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize


@pytest.mark.parametrize(("model", "norm_samples"), [("odd", None), ("wide_resnet", 4)])
def test_a_loss_that_raises_leaves_no_trace(model: str, norm_samples: int | None) -> None:
    """One engine whose loss fails time and again goes on as one whose loss never does."""
    calls: list[int] = []
    fails_at = -1

    def failing(model: Any, batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        loss = cross_entropy(model, batch)
        if calls[-1] == fails_at:
            raise KeyError("no such label")
        return loss

    run = Run(settings(micro_batches=4, norm_samples=norm_samples, chunk=4), model=model)
    engine, other = engine_for(run, loss_fn=failing), engine_for(run)
    # Two chunks a pass: 0 and 1 are in the first ascent, 2 and 3 in the descent at w + ε.
    for step, fails_at in enumerate((0, 1, 2, 3, 7)):
        before = engine.full_state_dict()
        calls.clear()
        with pytest.raises(KeyError):
            engine.train_step(mini_batch(50 + step))
        state = engine.full_state_dict()
        assert all(torch.equal(before[name], state[name]) for name in before)
        fails_at = -1
        engine.train_step(mini_batch(step))
        other.train_step(mini_batch(step))
        state, expected = engine.full_state_dict(), other.full_state_dict()
        assert all(torch.equal(expected[name], state[name]) for name in expected)


class _Failing(torch.autograd.Function):
    """The identity, whose backward raises while `armed`."""

    armed = False

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        if _Failing.armed:
            raise KeyError("no such gradient")
        return gradient


class FailsLate(nn.Module):
    """Its backward fails in front of the first layer, when most gradients are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 192)
        self.middle = nn.ModuleList(nn.Linear(192, 192) for _ in range(3))
        self.head = nn.Linear(192, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = _Failing.apply(self.first(images.flatten(1)))
        for layer in self.middle:
            features = layer(features).tanh()
        return self.head(features)  # type: ignore[no-any-return]


def _trained(*, fails: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    engine: Engine = initialize(
        FailsLate(), config=settings(algorithm="vanilla"), loss_fn=cross_entropy
    )
    for step in range(6):
        if fails:
            _Failing.armed = True
            with pytest.raises(KeyError):
                engine.train_step(own_part(engine, mini_batch(50 + step)))
            _Failing.armed = False
        engine.train_step(own_part(engine, mini_batch(step)))
    return engine.full_state_dict()


def test_gradients_on_their_way_do_not_arrive_in_the_next_step(on_ranks: OnRanks) -> None:
    expected = on_ranks(2, with_small_buckets, _trained, fails=False)
    for one, other in zip(
        expected, on_ranks(2, with_small_buckets, _trained, fails=True), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_takes_gradients_away_is_refused() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        model.zero_grad()
        return cross_entropy(model, batch)

    engine = engine_for(Run(settings(micro_batches=2)), loss_fn=loss_fn)
    with pytest.raises(UserError, match=r"\.grad was replaced.*must not call zero_grad"):
        engine.train_step(mini_batch(0))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, batch: cross_entropy(model, batch).reshape(1), r"Tensor of shape \(1,\)"),
        (lambda model, batch: model(batch[0]), r"Tensor of shape \(32, 5\)"),
        (lambda model, batch: cross_entropy(model, batch).item(), "float as the mean"),
        (lambda model, batch: None, "NoneType as the mean"),
    ],
)
def test_what_is_no_mean_loss_is_refused(loss: Any, words: str) -> None:
    engine = engine_for(Run(settings(micro_batches=1)), loss_fn=loss)
    with pytest.raises(UserError, match=f"loss_fn returned a {words}"):
        engine.train_step(mini_batch(0))


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        initialize(model, config=settings(micro_batches=1), loss_fn=cross_entropy)

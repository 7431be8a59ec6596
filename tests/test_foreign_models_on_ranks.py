"""What models and habits of others do on several ranks, and where DeepSpeed or FSDP2 run them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import cross_entropy, features
from engine_runs import own_part, settings
from rank_pool import OnRanks
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize

_STRATEGIES = ["replicated", "fsdp", "zero1", "zero3"]
_NORMS = {"hook": spectral_norm, "parametrization": parametrizations.spectral_norm}


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5))


def _engine(model: nn.Module, *, strategy: str, **changes: Any) -> Engine:
    arguments = {"loss_fn": cross_entropy, **changes}
    more = {"optimizer": {"name": "client"}} if "optimizer" in changes else {}
    config = settings(micro_batches=2, batch_size=8, precision="float32", strategy=strategy, **more)
    return initialize(model, config=config, **arguments)


def _after_two_steps(kind: str, strategy: str) -> dict[str, torch.Tensor]:
    model = _layers()
    model[0] = _NORMS[kind](model[0])
    engine = _engine(model, strategy=strategy)
    for _ in range(2):
        engine.train_step(own_part(engine, features()))
    return engine.full_state_dict()


@pytest.mark.parametrize("kind", _NORMS)
def test_spectral_norm_does_not_depend_on_the_layout(kind: str, on_ranks: OnRanks) -> None:
    expected = _after_two_steps(kind, "replicated")
    for strategy in _STRATEGIES:
        for state in on_ranks(2, _after_two_steps, kind, strategy):
            for name, tensor in expected.items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)


def _frozen_later(strategy: str) -> None:
    model = _layers()
    model[0].requires_grad_(False)
    engine = _engine(model, strategy=strategy)
    batch = own_part(engine, features())
    engine.train_step(batch)
    for name, trained in (("0", True), ("3", False)):
        engine(batch[0])  # an evaluation, which leaves parameters gathered
        model.get_submodule(name).requires_grad_(trained)
        with pytest.raises(UserError, match="frozen or unfrozen"):
            engine.train_step(batch)
        model.get_submodule(name).requires_grad_(not trained)
    engine.train_step(batch)


def test_what_is_frozen_or_unfrozen_later_is_refused(on_ranks: OnRanks) -> None:
    for strategy in _STRATEGIES:
        on_ranks(2, _frozen_later, strategy)


def _said_of_the_loss(strategy: str) -> list[list[str]]:
    """Of a loss without parameters, and of one with some."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("msam_scale").addHandler(handler)
    scale = nn.Parameter(torch.ones(5))

    def own(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(scale * model(batch[0]), batch[1])

    found = []
    for loss_fn in (cross_entropy, own):
        engine = _engine(_layers(), strategy=strategy, loss_fn=loss_fn)
        engine.train_step(own_part(engine, features()))
        found.append(list(heard))
        heard.clear()
    logging.getLogger("msam_scale").removeHandler(handler)
    return found


def test_parameters_of_the_loss_are_told_from_gathered_ones(on_ranks: OnRanks) -> None:
    for strategy in _STRATEGIES:
        (none, one), (other_none, other) = on_ranks(2, _said_of_the_loss, strategy)
        assert not none + other_none + other
        assert len(one) == 1
        assert "1 of them, of shapes (5,)" in one[0]


def _rates(strategy: str) -> list[float]:
    def build(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        groups = [{"params": [first], "lr_scale": 0.1}, {"params": rest}]
        return torch.optim.SGD(groups, lr=0.2)

    engine = _engine(_layers(), strategy=strategy, optimizer=build)
    engine.train_step(own_part(engine, features()))
    return [group["lr"] for group in engine.optimizer.param_groups]


def test_rates_of_layers_are_kept_where_optimizers_are_sharded(on_ranks: OnRanks) -> None:
    for strategy in _STRATEGIES:
        for rates in on_ranks(2, _rates, strategy):
            assert rates == pytest.approx([0.02, 0.2])


def _boxes() -> dict[str, torch.Tensor]:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        losses = [
            (model(image) - boxes.mean()).square().mean()
            for image, boxes in zip(batch["images"], batch["boxes"], strict=True)
        ]
        return torch.stack(losses).mean()

    engine = _engine(_layers(), strategy="replicated", loss_fn=loss_fn)
    positions = engine.plan.positions(engine.ranks.rank)
    boxes = [torch.full((i % 3 + 1, 4), float(i)) for i in range(8)]
    engine.train_step({"images": features()[0][positions], "boxes": [boxes[i] for i in positions]})
    return engine.full_state_dict()


def test_lists_of_samples_do_not_depend_on_ranks(on_ranks: OnRanks) -> None:
    expected = _boxes()
    for state in on_ranks(2, _boxes):
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)

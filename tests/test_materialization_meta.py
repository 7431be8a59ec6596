"""Models on the plain meta device get the values that the seed decides, and so do engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from deferred_models import LARGE_MODELS, Build, differences
from engine_models import cross_entropy
from engine_runs import settings
from rank_pool import OnRanks
from torch import nn

from data_pipelines.errors import UserError
from msam_scale import initialize
from msam_scale.materialization import (
    check_can_materialize,
    deferred_initialization,
    materialize,
)
from msam_scale.ranks import join


def _on_meta(build: Build) -> nn.Module:
    with torch.device("meta"):
        return build()


def _plain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(9, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 9)
    )


def test_a_model_on_the_plain_meta_device_gets_the_same_values_in_any_order() -> None:
    models = [_on_meta(_plain) for _ in range(3)]
    state = torch.get_rng_state()
    for model, order in zip(models, ([0, 1, 2], [2, 1, 0], []), strict=True):
        check_can_materialize(model)
        for index in order:
            materialize(model[index], seed=3)  # type: ignore[index]
        materialize(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert differences(models[0], expected=models[1]) == []
    assert differences(models[0], expected=models[2]) == []
    weights = [layer.weight for layer in models[0].modules() if isinstance(layer, nn.Linear)]
    assert all(0 < weight.abs().max() <= 8**-0.5 for weight in weights)
    # Relative to their range, which depends on the shape.
    drawn = [weight.detach().flatten() * weight.shape[1] ** 0.5 for weight in weights]
    assert not torch.allclose(drawn[0], drawn[2], rtol=1e-3), "layers differ"


def test_the_seed_decides_the_values_of_a_plain_meta_model() -> None:
    first, second = _on_meta(_plain), _on_meta(_plain)
    for model, seed in ((first, 1), (second, 2)):
        check_can_materialize(model)
        materialize(model, seed=seed)
    assert "0.weight" in differences(first, expected=second)


def test_plain_meta_ties_stay_ties_and_real_tensors_stay() -> None:
    def build() -> nn.Module:
        model = _plain()
        model[0].weight = nn.Parameter(model[2].weight.detach().t())  # type: ignore[index, operator, union-attr]
        model[2].weight = model[0].weight  # type: ignore[index, union-attr]
        return model

    model: Any = _on_meta(build)
    model[1][0].bias = nn.Parameter(torch.full((8,), 4.0))
    check_can_materialize(model)
    materialize(model, seed=3)
    assert model[0].weight is model[2].weight
    assert torch.equal(model[1][0].bias, torch.full((8,), 4.0))


def test_layers_that_make_no_values_are_refused_by_name() -> None:
    model = _on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(8, 2)))
    with pytest.raises(UserError, match=r"and 1 cannot make.*deferred_initialization"):
        check_can_materialize(model)
    model = _on_meta(LARGE_MODELS["vit"])
    with pytest.raises(UserError, match="deferred_initialization"):
        check_can_materialize(model)


class _Forgetful(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class _Half(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight.data[:2])
        nn.init.zeros_(self.bias)


class _Meddling(nn.Linear):
    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.inner = nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "inner"):
            nn.init.zeros_(self.inner.weight)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Forgetful, r"^0: its reset_parameters\(\) leaves bias without"),
        (_Half, r"^0: its reset_parameters\(\) leaves weight without"),
        (_Meddling, r"^0: its reset_parameters\(\) also changes the layers inside"),
    ],
)
def test_a_reset_that_does_less_or_more_than_its_layer_is_refused(
    kind: Callable[[int, int], nn.Module], message: str
) -> None:
    model = _on_meta(lambda: nn.Sequential(kind(4, 4)))
    check_can_materialize(model)
    with pytest.raises(UserError, match=message):
        materialize(model, seed=0)


def _initialized(strategy: str, *, deferred: bool) -> dict[str, torch.Tensor]:
    # Ranks build different models: all get that of rank 0.
    def build() -> nn.Module:
        torch.manual_seed(join().rank)
        return LARGE_MODELS["vit"]()

    if deferred:
        with deferred_initialization():
            model = build()
    else:
        model = build()
    config = settings(strategy=strategy, micro_batches=4, precision="float32")
    engine = initialize(model, config=config, loss_fn=cross_entropy)
    return engine.full_state_dict()


@pytest.mark.layouts
@pytest.mark.parametrize("strategy", ["replicated", "fsdp", "zero2", "zero3"])
def test_engines_hold_the_eager_values(on_ranks: OnRanks, strategy: str) -> None:
    [expected] = on_ranks(1, _initialized, "replicated", deferred=False)
    for held in on_ranks(2, _initialized, strategy, deferred=True):
        assert held.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in held.items())

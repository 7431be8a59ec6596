"""Deferred models that could not get their values are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deferred_models import LARGE_MODELS, SEED, Made, deferred, differences, eager, parameter
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.materialization import (
    check_can_materialize,
    deferred_initialization,
    materialize,
)

CHANGES: dict[str, Callable[[Any], Any]] = {
    "zero_": lambda layer: nn.init.zeros_(layer.weight),
    "torch.nn.init": lambda layer: nn.init.trunc_normal_(layer.weight),
    "data": lambda layer: layer.weight.data.zero_(),
    "double": lambda layer: layer.double(),
    "deepcopy": copy.deepcopy,
    "linear": lambda layer: layer(torch.ones(3, 64)),
    "set data": lambda layer: setattr(layer.weight, "data", torch.ones(64, 64)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_be_lost_outside_is_refused(change: str) -> None:
    model: Any = deferred(lambda: nn.Linear(64, 64))[0]
    with pytest.raises(UserError, match="no values before"):
        CHANGES[change](model)
    materialize(model, seed=0)
    CHANGES[change](model)
    assert type(model.weight) is nn.Parameter


def test_a_model_is_not_initialized_inside_the_context() -> None:
    with deferred_initialization(), pytest.raises(UserError, match="leave its `with` block"):
        check_can_materialize(nn.Linear(64, 64))


def test_contexts_nest() -> None:
    expected, _ = eager(LARGE_MODELS["attention"])
    torch.manual_seed(SEED)
    with deferred_initialization(), deferred_initialization():
        model = LARGE_MODELS["attention"]()
    materialize(model, seed=0)
    assert differences(model, expected=expected) == []


def test_what_cannot_be_repeated_is_refused_by_name() -> None:
    with deferred_initialization(), pytest.raises(UserError, match="batch_norm"):
        nn.BatchNorm1d(2000)(torch.randn(3, 2000))
    with deferred_initialization(), pytest.raises(UserError, match="batch_norm"):
        nn.BatchNorm1d(2)(torch.randn(900, 2))
    with deferred_initialization(), pytest.raises(UserError, match="resolve_conj"):
        torch.ones(64, 64, dtype=torch.complex64).conj().mul_(2)


def test_a_view_that_autograd_follows_is_refused_by_name() -> None:
    def construct(self: Any) -> None:
        self.weight = parameter(64, 64)
        self.row = self.weight[0]

    model, _ = deferred(lambda: Made(construct))
    with pytest.raises(UserError, match=r"^weight: .*\.detach\(\)"):
        materialize(model, seed=0)

"""Models built without memory get the values that building them normally gives, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deferred_models import (
    CONSTRUCTORS,
    LARGE_MODELS,
    SEED,
    Made,
    check_same_values,
    deferred,
    eager,
    values_on_the_host,
)
from engine_models import MODELS
from torch import nn

from msam_scale.materialization import deferred_initialization, materialize, recorder


@pytest.fixture
def all_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors have recipes, too."""
    monkeypatch.setattr(recorder, "FEWEST_ELEMENTS", 1)


@pytest.mark.usefixtures("all_deferred")
@pytest.mark.parametrize("name", MODELS)
def test_small_models_get_their_eager_values(name: str) -> None:
    model, _ = deferred(MODELS[name])
    assert all(one.is_meta for one in model.parameters() if one.dim())
    check_same_values(MODELS[name])


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_library_models_get_their_eager_values_from_the_last_block_on(name: str) -> None:
    check_same_values(LARGE_MODELS[name])


def test_the_order_of_blocks_does_not_matter() -> None:
    check_same_values(LARGE_MODELS["vit"], reverse=False)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_what_constructors_do_is_repeated(name: str) -> None:
    check_same_values(lambda: Made(CONSTRUCTORS[name]))


def test_python_values_are_those_of_an_eager_construction() -> None:
    def build() -> nn.Module:
        return Made(values_on_the_host)

    expected, model = eager(build)[0], deferred(build)[0]
    for name in ("rates", "num_large", "largest", "text"):
        assert getattr(model, name) == getattr(expected, name)


def test_numpy_arrays_of_deferred_tensors_cannot_be_written() -> None:
    with deferred_initialization():
        array = torch.zeros(2000).numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_tied_and_aliased_tensors_stay_so() -> None:
    def construct(self: Any) -> None:
        self.embedding = nn.Embedding(50, 40)
        self.head = nn.Linear(40, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("alias", self.embedding.weight.detach())
        self.attribute = torch.arange(2000)
        self.listed = [torch.randn(40, 40)]

    model: Any = deferred(lambda: Made(construct))[0]
    materialize(model, seed=0)
    expected: Any = eager(lambda: Made(construct))[0]
    assert model.head.weight is model.embedding.weight
    assert model.alias.data_ptr() == model.embedding.weight.data_ptr()
    assert torch.equal(model.attribute, expected.attribute)
    assert torch.equal(model.listed[0], expected.listed[0])


def test_parameters_stay_the_same_objects() -> None:
    model, _ = deferred(LARGE_MODELS["vit"])
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    list(model.parameters())[-2].requires_grad_(False)
    materialize(model, seed=0)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_what_follows_in_the_program_draws_the_same() -> None:
    def build() -> tuple[nn.Module, torch.Tensor]:
        return LARGE_MODELS["vit"](), torch.randn(7)

    torch.manual_seed(SEED)
    expected = build()[1]
    model, _ = deferred(LARGE_MODELS["vit"])
    drawn = torch.randn(7)
    state = torch.get_rng_state()
    materialize(model, seed=0)
    assert torch.equal(drawn, expected)
    assert torch.equal(torch.get_rng_state(), state)

"""What `initialize` refuses, and what an engine refuses afterwards, before it goes wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import settings
from rank_pool import OnRanks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from msam_scale import Engine, UserError
from msam_scale.initialization import initialize


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))


def engine_of(model: Any, **arguments: Any) -> Engine:
    return initialize(model, config=settings(micro_batches=4), **arguments)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no model": (lambda: None, {}, "NoneType"),
    "no function": (linear, {"loss_fn": "mse"}, "loss_fn"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), {}, "no values yet"),
    "meta": (
        lambda: nn.ParameterList([torch.empty(3, device="meta")]),
        {},
        "ParameterList.*deferred_initialization",
    ),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), {}, "complex64"),
    "data parallel": (lambda: nn.DataParallel(linear()), {}, "DataParallel"),
    "max_norm": (lambda: nn.Embedding(4, 2, max_norm=1.0), {}, "max_norm"),
    "part of the parameters": (
        linear,
        {"optimizer": lambda parameters: torch.optim.SGD(parameters[:1], lr=0.1)},
        "leaves out 1 of 2",
    ),
    "no optimizer": (linear, {"optimizer": lambda parameters: None}, "NoneType"),
    "closures": (linear, {"optimizer": torch.optim.LBFGS}, "lbfgs"),
    "no steps": (linear, {"num_steps": 0}, "num_steps"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused(what: str) -> None:
    make, arguments, word = REFUSED[what]
    with pytest.raises(UserError, match=word):
        engine_of(make(), **arguments)


def test_an_argument_with_a_key_of_its_own_is_refused() -> None:
    config = settings(micro_batches=4, optimizer={"name": "sgd", "lr": 0.1, "args": {"lr": 0.5}})
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        initialize(linear(), config=config)


def test_an_optimizer_may_be_passed_ready_made() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    engine = engine_of(model, optimizer=optimizer)
    assert engine.optimizer is optimizer
    assert not engine.train_step(mini_batch(0)).skipped


def _refused_on_this_rank(what: str) -> str:
    model, config = linear(), settings(micro_batches=4)
    if torch.distributed.get_rank() == 1:
        if what == "frozen":
            next(model.parameters()).requires_grad_(False)
        elif what == "shape":
            model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
        else:
            config["objective"] = {**config["objective"], "rho": 0.7}
    if what == "wrapped":
        model = DistributedDataParallel(model)
    with pytest.raises(UserError) as caught:
        initialize(model, config=config)
    return str(caught.value)


@pytest.mark.parametrize("what", ["frozen", "shape", "rho", "wrapped"])
def test_ranks_that_disagree_are_told_on_every_rank(what: str, on_ranks: OnRanks) -> None:
    for message in on_ranks(2, _refused_on_this_rank, what):
        assert "DistributedDataParallel" in message if what == "wrapped" else "disagree" in message


def test_a_parameter_is_not_frozen_behind_the_engine() -> None:
    engine = engine_of(linear())
    engine.module[1].bias.requires_grad_(False)
    with pytest.raises(UserError, match="frozen or unfrozen"):
        engine.train_step(mini_batch(0))


def test_a_learning_rate_is_not_set_behind_the_engine() -> None:
    engine = engine_of(linear())
    engine.train_step(mini_batch(0))
    engine.optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(UserError, match="changed from outside"):
        engine.train_step(mini_batch(1))


def test_a_second_engine_ends_the_first_whatever_the_layers() -> None:
    model = linear()
    first, second = engine_of(model), engine_of(model)
    second.train_step(mini_batch(0))
    with pytest.raises(UserError, match="another engine"):
        first.train_step(mini_batch(0))


@pytest.mark.parametrize("loss", [lambda m, b: cross_entropy(m, b).detach(), torch.no_grad()])
def test_a_loss_without_a_gradient_is_refused(loss: Any) -> None:
    loss_fn = loss(cross_entropy) if isinstance(loss, torch.no_grad) else loss
    with pytest.raises(UserError, match="without a gradient"):
        engine_of(linear(), loss_fn=loss_fn).train_step(mini_batch(0))


class WritesToAWeight(nn.Module):
    """Renormalises its weight at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(192, 5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.div_(self.weight.norm())
        return images.flatten(1) @ self.weight


def test_a_forward_that_writes_to_a_parameter_is_refused() -> None:
    with pytest.raises(UserError, match="weight: the model writes"):
        engine_of(WritesToAWeight()).train_step(mini_batch(0))


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_labels_that_do_not_count_weigh_nothing_in_any_chunk(chunk: int | None) -> None:
    images, labels = mini_batch(0)
    labels[:7] = -100
    config = settings(micro_batches=1, chunk=chunk)
    step = initialize(linear(), config=config).train_step((images, labels))
    logits = linear().double()(images)
    expected = F.cross_entropy(logits, labels, reduction="sum") / len(labels)
    assert step.loss == pytest.approx(expected.item(), rel=1e-12)


def test_batch_norm_without_running_statistics_does_not_depend_on_chunks_in_eval() -> None:
    norms = []
    for chunk in (None, 4):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(192, track_running_stats=False)
        model = nn.Sequential(nn.Flatten(), norm, nn.Linear(192, 5)).eval()
        config = settings(micro_batches=2, chunk=chunk, norm_samples=4)
        norms.append(initialize(model, config=config).train_step(mini_batch(0)).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)


@pytest.mark.parametrize("model", ["dropout_vit", "wide_resnet"])
def test_a_trained_module_can_be_pickled(model: str) -> None:
    module = build_model(model)
    engine_of(module, loss_fn=cross_entropy).train_step(mini_batch(0))
    copy = pickle.loads(pickle.dumps(module))
    images = mini_batch(1)[0]
    with torch.no_grad():
        assert torch.equal(copy.eval()(images), module.eval()(images))

"""Gradients that are not finite: every rank leaves the step out, and goes on as if it never was."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import BATCH_SIZE, cross_entropy, mini_batch
from engine_runs import ADAMW, SGD, Run, engine_for, own_part, settings
from rank_pool import OnRanks
from torch import nn

from msam_scale import initialize
from msam_scale.engine import Engine
from msam_scale.errors import NonFiniteError, NonFiniteStepError

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "sgd foreach": {**SGD, "args": {"foreach": True}},
    "sgd unfused": {**SGD, "args": {"fused": False}},
    "plain sgd": {"name": "sgd", "lr": 0.05},
    "adamw": ADAMW,
    "adamw foreach": {**ADAMW, "args": {"eps": 1e-5, "foreach": True}},
    "adagrad": {"name": "adagrad", "lr": 0.01},
    "rmsprop": {"name": "rmsprop", "lr": 0.001},
}


def _everything(engine: Engine) -> list[Any]:
    state = engine.optimizer.state_dict()["state"]
    return copy.deepcopy([engine.full_state_dict(), state])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _batch(engine: Engine, number: int, *, bad: bool) -> tuple[torch.Tensor, ...]:
    images, labels = mini_batch(number)
    if bad:  # one sample, which the last rank supplies
        images[BATCH_SIZE - 1, 0, 0, 0] = float("nan")
    return own_part(engine, (images, labels))


def _skips_leave_no_trace(algorithm: str, optimizer: dict[str, Any]) -> None:
    micro_batches = 4 if algorithm == "msam" else None
    config = settings(
        algorithm=algorithm,
        micro_batches=micro_batches,
        norm_samples=4,
        optimizer=optimizer,
        clip_norm=0.5,
    )
    engine = engine_for(Run(config, model="wide_resnet"))
    spared = engine_for(Run(config, model="wide_resnet"))
    # The very first step is bad: fused SGD would leave its momentum uninitialised.
    for number, bad in enumerate((True, True, False, True, False, False)):
        before = _everything(engine)
        step = engine.train_step(_batch(engine, number, bad=bad))
        assert step.skipped == bad
        if bad:
            assert _same(before, _everything(engine))
        else:
            spared.train_step(_batch(spared, number, bad=False))
            assert not _same(before, _everything(engine))
    assert _same(_everything(engine), _everything(spared))
    assert engine.skipped_steps.total == 3
    assert engine.num_steps_done == 6


@pytest.mark.parametrize(("algorithm", "size"), [("vanilla", 2), ("sam", 4), ("msam", 2)])
def test_a_bad_sample_on_one_rank_is_skipped_on_all(
    algorithm: str, size: int, on_ranks: OnRanks
) -> None:
    on_ranks(size, _skips_leave_no_trace, algorithm, SGD)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_skipping_keeps_the_state_of_every_kind_of_optimizer(optimizer: str) -> None:
    _skips_leave_no_trace("msam", OPTIMIZERS[optimizer])


def _stops_after_bad_steps_in_a_row() -> None:
    engine = engine_for(Run(settings(micro_batches=4, max_skipped_steps=3)))
    for number, bad in enumerate([True, True, False, True, True, True, True, False]):
        batch = _batch(engine, number, bad=bad)
        if number in (5, 6):  # the third bad one in a row, and the fourth
            with pytest.raises(NonFiniteError, match="max_skipped_steps: 3"):
                engine.train_step(batch)
        else:
            engine.train_step(batch)
    assert all(bool(tensor.isfinite().all()) for tensor in engine.full_state_dict().values())


def test_too_many_in_a_row_stop_every_rank(on_ranks: OnRanks) -> None:
    on_ranks(2, _stops_after_bad_steps_in_a_row)


@pytest.mark.parametrize("algorithm", ["vanilla", "msam"])
def test_statistics_beyond_the_type_skip_the_step(algorithm: str) -> None:
    """A layer divides by the root of an infinite variance: losses and gradients stay finite."""
    micro_batches = 4 if algorithm == "msam" else None
    config = settings(
        algorithm=algorithm, micro_batches=micro_batches, norm_samples=4, precision="float32"
    )
    engine = engine_for(Run(config, model="wide_resnet"))
    images, labels = mini_batch(0, dtype=torch.float32)
    engine.train_step((images, labels))
    before = _everything(engine)
    images[0] *= 1e22  # finite, and so is its loss
    step = engine.train_step((images, labels))
    assert step.skipped
    assert torch.isfinite(torch.tensor([step.loss, step.grad_norm])).all()
    assert _same(before, _everything(engine))


def test_a_loss_scale_beyond_the_type_is_named() -> None:
    def trained(limit: int, num_steps: int) -> None:
        config = settings(micro_batches=4, max_skipped_steps=limit, precision="float16")
        config["training"] = {"loss_scale": {"initial_power": 60}}
        engine = initialize(nn.Linear(4, 3), config=config)
        inputs = torch.randn(BATCH_SIZE, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(num_steps):
            engine.train_step((inputs, torch.arange(BATCH_SIZE) % 3))
        assert engine.skipped_steps.total < num_steps

    with pytest.raises(NonFiniteError, match=r"the loss scale is still .*e\+17 .*65504") as caught:
        trained(3, num_steps=4)
    assert "learning" not in str(caught.value)
    (proposed,) = re.findall(r"objective.max_skipped_steps: (\d+), as", str(caught.value))
    trained(int(proposed), num_steps=int(proposed) + 1)


def test_a_norm_beyond_the_type_skips_the_step() -> None:
    """Every entry of the ascent gradient is finite, its squares are not; the descent is all right.

    A perturbation by such a norm would be none at all.
    """
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        return cross_entropy(model, batch) * (1e25 if calls[-1] == 0 else 1.0)

    engine = engine_for(Run(settings(micro_batches=1, precision="float32")), loss_fn=loss_fn)
    before = _everything(engine)
    step = engine.train_step(mini_batch(0, dtype=torch.float32))
    assert step.skipped
    assert step.grad_norm < 100
    assert _same(before, _everything(engine))


def test_the_counts_survive_a_checkpoint(tmp_path: Path) -> None:
    run = Run(settings(micro_batches=4, max_skipped_steps=3))
    engine, resumed = engine_for(run), engine_for(run)
    for number in range(2):
        engine.train_step(_batch(engine, number, bad=True))
    engine.save_checkpoint(tmp_path)
    resumed.load_checkpoint(tmp_path)
    assert resumed.skipped_steps.state() == [2, 2]
    with pytest.raises(NonFiniteError):
        resumed.train_step(_batch(resumed, 2, bad=True))


def _infinite(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * float("inf")


def _fault_of_a_step(what: str, bad_pass: int, *, algorithm: str = "msam") -> str:
    """What the error of `abort` says of a step with one bad thing; the weights stay as they are."""
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        loss = cross_entropy(model, batch)
        is_bad = engine.ranks.rank == engine.ranks.size - 1 and calls[-1] == bad_pass
        if is_bad and what == "loss":
            loss = loss + float("nan")  # whose gradient is finite
        elif is_bad:
            loss.register_hook(_infinite)
        return loss

    micro_batches = 4 if algorithm == "msam" else None
    config = settings(algorithm=algorithm, micro_batches=micro_batches, chunk=None)
    config["objective"]["non_finite"] = "abort"
    engine = engine_for(Run(config), loss_fn=loss_fn)
    before = _everything(engine)
    with pytest.raises(NonFiniteStepError) as caught:
        engine.train_step(own_part(engine, mini_batch(0)))
    assert _same(before, _everything(engine))
    assert caught.value.step == 0
    assert str(caught.value).startswith(f"step 1: {caught.value.fault} (objective.non_finite: abor")
    assert "optimizer.lr" in str(caught.value)
    return caught.value.fault


def _faults_of_steps() -> list[str]:
    cases = [(what, bad_pass) for what in ("loss", "gradient") for bad_pass in (0, 1)]
    return [_fault_of_a_step(what, bad_pass) for what, bad_pass in cases]


def test_what_was_not_finite_is_named_on_all_ranks(on_ranks: OnRanks) -> None:
    expected = [
        f"the {what} of the {name} pass was not finite"
        for what in ("loss", "gradient")
        for name in ("ascent", "descent")
    ]
    assert on_ranks(2, _faults_of_steps) == [expected] * 2


def test_the_pass_of_vanilla_training_is_the_descent() -> None:
    said = _fault_of_a_step("loss", 0, algorithm="vanilla")
    assert said == "the loss of the descent pass was not finite"


def test_a_bad_loss_alone_is_skipped_by_default() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return cross_entropy(model, batch) + float("inf")

    engine = engine_for(Run(settings(micro_batches=4, max_skipped_steps=2)), loss_fn=loss_fn)
    assert engine.train_step(mini_batch(0)).skipped
    with pytest.raises(NonFiniteError, match="step 2: the loss of the ascent pass was not finite"):
        engine.train_step(mini_batch(1))

"""torch's optimizers by name, and the learning rates that schedules give them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, outcome_of, settings

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize
from msam_scale.optimization import optimizer_class

# Fused ones, one whose name has other letters in torch, and one without a fused implementation.
CLASSES = {"SGD": "SGD", "AdamW": "AdamW", "nadam": "NAdam", "adagrad": "Adagrad"}


@pytest.mark.parametrize("name", CLASSES)
def test_optimizers_run_by_name_and_equal_torchs_class(name: str) -> None:
    cls = getattr(torch.optim, CLASSES[name])
    section = {"name": name, "lr": 0.003, "weight_decay": 0.01}
    by_name = outcome_of(Run(settings(micro_batches=4, optimizer=section), steps=3)).state
    run = Run(settings(micro_batches=4, optimizer={}), steps=3)
    by_hand = outcome_of(
        run, optimizer=lambda parameters: cls(parameters, lr=0.003, weight_decay=0.01)
    ).state
    for key, tensor in by_hand.items():
        torch.testing.assert_close(by_name[key], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamv", "did you mean 'adam'"),
        ("qqq", "adadelta, adafactor, "),
        ("lbfgs", "needs closures or sparse gradients; choose one of adadelta, "),
        ("SparseAdam", "needs closures or sparse gradients"),
        ("Optimizer", "unknown optimizer"),
    ],
)
def test_names_that_do_not_work_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"(?i)'{name}'.*{words}|{words} '{name}'"):
        optimizer_class(name)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "adamw", "momentum": 0.9}, r"optimizer\.momentum: AdamW has no such argument"),
        ({"args": {"nestrov": True}}, r"optimizer\.args\.nestrov: SGD .*takes lr, momentum"),
        ({"args": {"nesterov": True}}, r"SGD refuses these settings: Nesterov momentum requires"),
        ({"name": "adamw", "args": {"betas": [2, 0.9]}}, "AdamW refuses these settings: Invalid"),
        ({"name": "muon"}, "Muon refuses these settings: Muon only supports 2D"),
    ],
)
def test_arguments_that_do_not_work_are_refused(section: dict[str, Any], words: str) -> None:
    config = settings(micro_batches=4, optimizer={"lr": 0.1, **section})
    with pytest.raises(UserError, match=words):
        engine_for(Run(config))


class TakesAnything(torch.optim.SGD):
    """Passes its keyword arguments on."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)


def test_a_class_takes_the_configs_section() -> None:
    config = settings(micro_batches=4)
    expected = outcome_of(Run(config, steps=3)).state
    for cls in (torch.optim.SGD, TakesAnything):
        state = outcome_of(Run(config, steps=3), optimizer=cls).state
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_class_goes_before_the_configs_name() -> None:
    config = settings(micro_batches=4, optimizer={"name": "adamw", "lr": 0.125})
    engine = engine_for(Run(config), optimizer=torch.optim.Adagrad)
    assert isinstance(engine.optimizer, torch.optim.Adagrad)
    assert engine.learning_rate == 0.125


def test_another_implementation_than_the_fused_one_may_be_asked_for() -> None:
    section = {"name": "adamw", "lr": 0.1, "args": {"foreach": True}}
    engine = engine_for(Run(settings(micro_batches=4, optimizer=section)))
    assert engine.optimizer.defaults["foreach"]
    assert not engine.optimizer.defaults["fused"]


def test_without_a_learning_rate_the_optimizer_has_its_own_default() -> None:
    engine = engine_for(Run(settings(micro_batches=4, optimizer={"name": "sgd"})))
    assert engine.learning_rate == inspect.signature(torch.optim.SGD).parameters["lr"].default


def test_an_optimizer_that_is_given_goes_before_the_config(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = settings(micro_batches=4, optimizer={"name": "adamw", "lr": 0.5, "clip_norm": 1.0})
    engine = initialize(
        build_model("odd"),
        config=config,
        loss_fn=cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.25),
    )
    assert isinstance(engine.optimizer, torch.optim.SGD)
    assert engine.learning_rate == 0.25
    assert "optimizer.name, optimizer.lr not used" in caplog.text


def _scheduled(**arguments: Any) -> Engine:
    config = settings(micro_batches=4) | {"schedule": {"name": "linear", "warmup": 2}}
    return initialize(
        build_model("odd"), config=config, loss_fn=cross_entropy, num_steps=6, **arguments
    )


def test_every_group_follows_the_schedule_from_its_own_peak() -> None:
    def two_groups(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.4}, {"params": others, "lr": 0.1}]
        return torch.optim.SGD(groups)

    engine = _scheduled(optimizer=two_groups)
    for step, fraction in enumerate((0.5, 1.0, 1.0, 0.75, 0.5, 0.25)):
        assert engine.learning_rate == pytest.approx(0.4 * fraction)
        engine.train_step(mini_batch(step))
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        assert rates == pytest.approx([0.4 * fraction, 0.1 * fraction])
    assert engine.learning_rate == 0.0


def test_a_skipped_step_moves_the_schedule_on() -> None:
    engine = _scheduled()
    images, labels = mini_batch(0)
    assert engine.train_step((images * float("nan"), labels)).skipped
    assert engine.num_steps_done == 1
    assert engine.learning_rate == pytest.approx(0.05)


def test_a_first_step_that_is_skipped_leaves_the_momentum_to_the_next() -> None:
    images, labels = mini_batch(9)
    states = []
    for bad in ([], [(images * float("nan"), labels)]):
        engine = engine_for(Run(settings(micro_batches=4)))
        skipped = [engine.train_step(batch).skipped for batch in (*bad, *map(mini_batch, range(2)))]
        assert sum(skipped) == len(bad)
        states.append(engine.full_state_dict())
    assert all(states[0][name].equal(value) for name, value in states[1].items())

"""DeepSpeed's schedules by step, against the rates that a real DeepSpeed engine steps with."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from rank_pool import OnRanks

from msam_scale.config.deepspeed.schedules import (
    REQUIRED_ARGUMENTS,
    SCHEDULE_ARGUMENTS,
    top_rate,
)
from msam_scale.errors import UserError
from msam_scale.optimization.deepspeed_schedules import DeepSpeedSchedule
from msam_scale.sharding.zero.private_api import prepare_process

NUM_STEPS = 14
RATE = 3e-3

# (schedule, its arguments, the optimizer's type)
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("LRRangeTest", {}, "SGD"),
    ("LRRangeTest", {"lr_range_test_min_lr": 0.01, "lr_range_test_step_size": 3}, "SGD"),
    (
        "LRRangeTest",
        {
            "lr_range_test_step_size": 4,
            "lr_range_test_step_rate": 2.5,
            "lr_range_test_staircase": True,
        },
        "AdamW",
    ),
    ("OneCycle", {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-2}, "SGD"),
    (
        "OneCycle",
        {
            "cycle_min_lr": 1e-4,
            "cycle_max_lr": 1e-2,
            "cycle_first_step_size": 4,
            "cycle_second_step_size": 3,
            "decay_lr_rate": 0.5,
            "decay_step_size": 2,
            "cycle_min_mom": 0.7,
            "cycle_max_mom": 0.95,
            "decay_mom_rate": 0.01,
        },
        "AdamW",
    ),
    (
        "OneCycle",
        {
            "cycle_min_lr": 1e-4,
            "cycle_max_lr": 1e-2,
            "cycle_first_step_size": 6,
            "cycle_first_stair_count": 2,
            "cycle_momentum": False,
        },
        "AdamW",
    ),
    ("WarmupLR", {"warmup_num_steps": 5}, "AdamW"),
    ("WarmupLR", {"warmup_num_steps": 5, "warmup_max_lr": 0.1, "warmup_min_lr": 1e-3}, "SGD"),
    ("WarmupLR", {"warmup_num_steps": 1, "warmup_type": "linear"}, "AdamW"),
    ("WarmupDecayLR", {"total_num_steps": 10, "warmup_num_steps": 4}, "AdamW"),
    (
        "WarmupDecayLR",
        {
            "total_num_steps": 12,
            "warmup_num_steps": 4,
            "warmup_max_lr": None,
            "warmup_type": "linear",
        },
        "SGD",
    ),
    ("WarmupCosineLR", {"total_num_steps": 11, "warmup_num_steps": 3}, "AdamW"),
    (
        "WarmupCosineLR",
        {
            "total_num_steps": 11,
            "warmup_num_steps": 3,
            "warmup_min_ratio": 0.2,
            "cos_min_ratio": 0.05,
            "warmup_type": "linear",
        },
        "SGD",
    ),
]


def rates_of_deepspeed() -> list[list[dict[str, Any]]]:
    """What the optimizer of a real DeepSpeed engine steps with, for every case; on a rank."""
    import deepspeed

    prepare_process()
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
    found = []
    for index, (name, arguments, optimizer) in enumerate(CASES):
        params: dict[str, Any] = {"lr": RATE}
        if optimizer == "AdamW":
            params["torch_adam"] = True
        model = torch.nn.Linear(2, 2)
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            config={
                "train_batch_size": 2,
                "optimizer": {"type": optimizer, "params": params},
                "scheduler": {"type": name, "params": arguments},
                "zero_optimization": {"stage": index % 2},
                "zero_allow_untested_optimizer": True,
            },
        )
        steps = []
        for _ in range(NUM_STEPS):
            engine.backward(engine(torch.ones(1, 2)).sum())
            group = engine.optimizer.param_groups[0]
            steps.append({key: group[key] for key in ("lr", "betas") if key in group})
            engine.step()
        found.append(steps)
    return found


def group_of(optimizer: str) -> dict[str, Any]:
    betas = {"betas": (0.9, 0.999)} if optimizer == "AdamW" else {}
    return {"lr": RATE, **betas}


def test_every_step_has_deepspeeds_rate_and_momentum(on_ranks: OnRanks) -> None:
    rates = on_ranks(2, rates_of_deepspeed)[0]
    for (name, arguments, optimizer), expected in zip(CASES, rates, strict=True):
        schedule = DeepSpeedSchedule(name, arguments, groups=[group_of(optimizer)])
        ours = [schedule(step)[0] for step in range(NUM_STEPS)]
        assert ours == expected, (name, arguments)
        # A schedule that does not move would hide one that is a step off.
        assert len({settings["lr"] for settings in ours}) > 1


@pytest.mark.parametrize(("name", "arguments", "optimizer"), CASES)
def test_a_step_has_its_rate_whatever_was_asked_before(
    name: str, arguments: dict[str, Any], optimizer: str
) -> None:
    schedule = DeepSpeedSchedule(name, arguments, groups=[group_of(optimizer)])
    in_order = [schedule(step) for step in range(9)]
    for step in (7, 0, 3, 8, 0, 1):
        fresh = DeepSpeedSchedule(name, arguments, groups=[group_of(optimizer)])
        assert schedule(step) == fresh(step) == in_order[step]


def test_every_group_keeps_its_own_peak_where_the_schedule_has_none() -> None:
    groups = [{"lr": 0.1}, {"lr": 0.4}]
    schedule = DeepSpeedSchedule("WarmupLR", {"warmup_num_steps": 2}, groups=groups)
    assert [group["lr"] for group in schedule(5)] == [0.1, 0.4]
    absolute = DeepSpeedSchedule("WarmupLR", {"warmup_max_lr": 0.3}, groups=groups)
    assert [group["lr"] for group in absolute(2000)] == [0.3, 0.3]


@pytest.mark.parametrize("name", SCHEDULE_ARGUMENTS)
def test_the_arguments_are_those_of_deepspeeds_classes(name: str) -> None:
    from deepspeed.runtime import lr_schedules

    parameters = inspect.signature(getattr(lr_schedules, name)).parameters
    expected = set(parameters) - {"optimizer", "last_batch_iteration"}
    assert set(SCHEDULE_ARGUMENTS[name]) == expected
    required = {key for key in expected if parameters[key].default is inspect.Parameter.empty}
    assert set(REQUIRED_ARGUMENTS.get(name, ())) == required


def test_the_classes_are_all_of_deepspeeds() -> None:
    from deepspeed.runtime import lr_schedules

    assert set(SCHEDULE_ARGUMENTS) == set(lr_schedules.VALID_LR_SCHEDULES)


@pytest.mark.parametrize(("name", "arguments", "optimizer"), CASES)
def test_which_schedules_follow_the_optimizers_rate(
    name: str, arguments: dict[str, Any], optimizer: str
) -> None:
    rates = []
    for rate in (0.5, 0.25):
        groups = [{**group_of(optimizer), "lr": rate}]
        schedule = DeepSpeedSchedule(name, arguments, groups=groups)
        rates.append([schedule(step)[0]["lr"] for step in range(NUM_STEPS)])
    assert (rates[0] == rates[1]) == (top_rate(name, arguments) is not None)


def test_what_deepspeed_refuses_is_the_users_to_mend() -> None:
    arguments = {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0, "cycle_second_step_size": -1}
    with pytest.raises(UserError, match=r"schedule\.args: OneCycle refuses .* non-negative"):
        DeepSpeedSchedule("OneCycle", arguments, groups=[{"lr": 0.1}])


def test_a_constructor_does_not_warn_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    from deepspeed.utils import logger

    logger.addHandler(caplog.handler)
    try:
        DeepSpeedSchedule("WarmupLR", {}, groups=[{"lr": 0.1}])
        assert caplog.records == []
        logger.warning("something else")
        assert len(caplog.records) == 1
    finally:
        logger.removeHandler(caplog.handler)

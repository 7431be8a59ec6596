"""The rules between settings: each fires on what it forbids, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from msam_scale.batch_plan import BatchPlan
from msam_scale.config import ConfigError, check_config, check_for_training, load_config
from msam_scale.config.keys import STAND_INS, all_keys, nested
from msam_scale.config.schema import Config
from msam_scale.errors import UserError

GOOD: dict[str, Any] = {"batch.size": 64, "objective.micro_batches": 8}


def load(settings: dict[str, Any], **options: Any) -> Config:
    return load_config(nested({**GOOD, **settings}), **options)


def refusal_of(micro_batches: int, world_size: int) -> str | None:
    try:
        BatchPlan(64, micro_batches, world_size)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6, 7, 8, 64])
def test_a_layout_is_refused_exactly_when_the_plan_refuses_it(world_size: int) -> None:
    for micro_batches in (1, 2, 3, 8, 12, 64):
        settings = {"objective.micro_batches": micro_batches}
        refusal = refusal_of(micro_batches, world_size)
        if refusal is None:
            load(settings, world_size=world_size)
            continue
        with pytest.raises(ConfigError) as caught:
            load(settings, world_size=world_size)
        assert [problem.key for problem in caught.value.problems] == ["objective.micro_batches"]
        assert refusal in str(caught.value)


def test_ghost_batches_have_to_fit_the_slice_of_a_rank() -> None:
    settings = {"batch.norm_samples": 8, "objective.micro_batches": 4}
    load(settings, world_size=4)  # slices of 16
    with pytest.raises(ConfigError, match="2 or 4 works"):
        load(settings, world_size=16)  # slices of 4


def test_chunks_have_to_hold_whole_ghost_batches() -> None:
    load({"batch.norm_samples": 4, "batch.chunk": 8})
    with pytest.raises(ConfigError, match=r"batch\.chunk: 3 .*; 4 works"):
        load({"batch.norm_samples": 4, "batch.chunk": 3})


def test_sam_and_vanilla_need_no_micro_batches() -> None:
    for algorithm in ("sam", "vanilla"):
        load_config({"batch": {"size": 3}, "objective": {"algorithm": algorithm}}, world_size=3)
    load({"objective.algorithm": "sam", "objective.micro_batches": 1})


def test_settings_without_effect_are_fine_at_their_default() -> None:
    load({"objective.algorithm": "vanilla", "objective.rho": 0.05, "sharding.offload": False})


def test_what_follows_numbers_that_go_wrong_fits_the_rest() -> None:
    abort = {"objective.non_finite": "abort"}
    rollback = {"objective.non_finite": "rollback", "checkpoint.every": 5}
    for good in (abort, rollback, {**rollback, "objective.max_rollbacks": 1}):
        load({**good, "objective.max_skipped_steps": 10})
    for wrong, said in [
        ({"objective.non_finite": "rollback"}, "checkpoint.every: is missing"),
        ({**abort, "precision": "float16"}, "abort does not work with precision: float16"),
        ({**rollback, "precision": "float16"}, "rollback does not work with precision: float16"),
        ({**abort, "objective.max_skipped_steps": 3}, "max_skipped_steps: 3 has no effect"),
        ({**rollback, "objective.max_skipped_steps": 3}, "max_skipped_steps: 3 has no effect"),
        ({**abort, "objective.max_rollbacks": 1}, "max_rollbacks: 1 has no effect"),
        ({"objective.max_rollbacks": 1}, "max_rollbacks: 1 has no effect"),
        ({"monitor.loss_spike": 0}, "monitor.loss_spike: 0 is not above 0"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            load(wrong)
        assert len(caught.value.problems) == 1


def test_settings_with_effect_are_fine() -> None:
    load({"data.val": "val", "training.eval_every": 5})
    load({"schedule.warmup": 9, "training.steps": 10})
    load({"schedule.warmup": 0.5, "training.steps": 1})


@pytest.mark.parametrize("decay", [0.0, 1.0, 1, -0.5])
def test_a_decay_lies_between_0_and_1(decay: float) -> None:
    assert load({"training.ema": 0.9999}).training.ema == 0.9999
    with pytest.raises(ConfigError, match=r"training\.ema"):
        load({"training.ema": decay})


def test_training_needs_a_model_data_a_rate_and_a_length() -> None:
    needed = {"model.name": "vit", "data.train": "d", "optimizer.lr": 0.1, "training.epochs": 1}
    check_for_training(load(needed))
    check_for_training(load({**needed, "training.epochs": None, "training.steps": 3}))
    for key in needed:
        others = {name: value for name, value in needed.items() if name != key}
        with pytest.raises(ConfigError, match=f"{key}: is missing") as caught:
            check_for_training(load(others))
        assert len(caught.value.problems) == 1
        load(others)
        with pytest.raises(ConfigError, match=f"{key}: is missing"):
            load(others, for_training=True)


def test_a_config_built_in_python_can_be_checked() -> None:
    config = Config.model_validate(nested(GOOD))
    check_config(config, world_size=8)
    with pytest.raises(ConfigError, match=r"batch\.size"):
        check_config(config, world_size=7)


def test_every_required_setting_has_a_stand_in() -> None:
    required = {
        f"{name}.{inner.alias or key}"
        for name, section in Config.model_fields.items()
        for key, inner in getattr(section.annotation, "model_fields", {}).items()
        if inner.is_required()
    }
    assert required == set(STAND_INS)
    assert required < set(all_keys())

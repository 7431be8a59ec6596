"""The rules about sharding, float16 and schedules: each fires on what it forbids alone."""

from __future__ import annotations

from typing import Any

import pytest

from launch.cli import main
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import ConfigError, load_config
from msam_scale.config.keys import nested

GOOD: dict[str, Any] = {"batch.size": 64, "objective.micro_batches": 8}

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"sharding.strategy": "zero1", "sharding.shard_group": 2}, "shard_group: 2 has no effect"),
    ({"sharding.strategy": "zero2", "sharding.shard_group": 2}, "shard_group: 2 has no effect"),
    ({"sharding.shard_group": 2}, "shard_group: 2 has no effect with sharding.strategy: replicat"),
    ({"sharding.strategy": "fsdp", "sharding.shard_group": 3}, "3 does not divide 4 ranks; 1, 2 o"),
    ({"sharding.strategy": "zero3", "sharding.shard_group": 8}, "8 does not divide 4 ranks"),
    ({"sharding.strategy": "fsdp", "sharding.deepspeed": {}}, "sharding.deepspeed: {} has no eff"),
    ({"sharding.strategy": "zero1", "precision": "float64"}, "float64 does not work with sharding"),
    ({"sharding.strategy": "zero3", "precision": "float64"}, "float64 does not work with sharding"),
    ({"sharding.blocks": ["Block"]}, 'sharding.blocks: ["Block"] has no effect'),
    ({"sharding.strategy": "zero3", "sharding.blocks": [3]}, "3 is a whole number; text works"),
    ({"training.activation_checkpointing": 1}, "activation_checkpointing: 1 is below 2"),
    ({"training.loss_scale.window": 10}, "loss_scale.window: 10 has no effect with precision: fl"),
    (
        {
            "precision": "float16",
            "training.loss_scale.static": 128.0,
            "training.loss_scale.hysteresis": 1,
        },
        "loss_scale.hysteresis: 1 has no effect with training.loss_scale.static",
    ),
    (
        {"precision": "float16", "training.loss_scale.windows": 1},
        "training.loss_scale.windows: is not a key",
    ),
    (
        {"schedule.args": {"a": 1}},
        'schedule.args: {"a": 1} has no effect with schedule.name: const',
    ),
    (
        {"schedule.name": "WarmupLR", "schedule.warmup": 5},
        "schedule.warmup: 5 has no effect with schedule.name: WarmupLR",
    ),
    (
        {
            "schedule.name": "WarmupDecayLR",
            "schedule.args": {"total_num_steps": 2000},
            "optimizer.lr": 0.1,
        },
        "optimizer.lr: 0.1 has no effect: WarmupDecayLR sets the rate, warmup_max_lr: 0.001",
    ),
    (
        {"schedule.name": "OneCycle", "schedule.args": {"cycle_min_lr": 0.1}},
        "schedule.args: lacks cycle_max_lr",
    ),
    ({"optimizer.name": "deepspeed_lion"}, "deepspeed_lion is DeepSpeed's own and works with shar"),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES)
def test_a_mistake_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(nested({**GOOD, **settings}), world_size=4)
    assert len(caught.value.problems) == 1, str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"sharding.strategy": "fsdp", "sharding.shard_group": 2, "precision": "float64"},
        {"sharding.strategy": "fsdp", "sharding.offload": True, "sharding.blocks": ["Block"]},
        {"sharding.strategy": "zero3", "sharding.shard_group": 4, "precision": "float16"},
        {"sharding.strategy": "zero2", "optimizer.name": "deepspeed_adamw"},
        {"training.activation_checkpointing": 2, "sharding.blocks": ["Block"]},
        {"training.activation_checkpointing": True, "training.compile": True},
        {"precision": "float16", "training.loss_scale.static": 128.0},
        {"schedule.name": "WarmupLR", "optimizer.lr": 0.1},
        {
            "schedule.name": "WarmupDecayLR",
            "schedule.args": {"total_num_steps": 2000, "warmup_max_lr": None},
            "optimizer.lr": 0.1,
        },
    ],
)
def test_what_goes_together_is_fine(settings: dict[str, Any]) -> None:
    for world_size in (None, 4):
        load_config(nested({**GOOD, **settings}), world_size=world_size)


@pytest.mark.parametrize(
    ("strategy", "shard_group", "expected"),
    [
        ("replicated", None, 1),
        ("zero1", None, 1),
        ("zero2", None, 1),
        ("fsdp", None, 4),
        ("zero3", None, 4),
        ("fsdp", 2, 2),
        ("zero3", 2, 2),
    ],
)
def test_the_layout_follows_the_shard_group(
    strategy: str,
    shard_group: int | None,
    expected: int,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.json"
    path.write_text("{}")
    words = [f"{key}={value}" for key, value in GOOD.items()]
    words += [f"sharding.strategy={strategy}"]
    if shard_group is not None:
        words.append(f"sharding.shard_group={shard_group}")
    assert main(["config", "check", str(path), "--nproc", "4", *words]) == 0
    plan = BatchPlan(64, 8, 4, expected)
    groups = f"{plan.groups} group{'s' if plan.groups > 1 else ''} of {plan.group_size} rank"
    assert groups in capsys.readouterr().out


def test_a_micro_batch_that_a_shard_group_cannot_share_is_refused() -> None:
    settings = {"batch.size": 8, "objective.micro_batches": 8}
    load_config(nested(settings), world_size=4)
    with pytest.raises(ConfigError, match="each spread over 4 ranks"):
        load_config(nested({**settings, "sharding.strategy": "zero3"}), world_size=4)
    load_config(
        nested({**settings, "sharding.strategy": "zero3", "sharding.shard_group": 1}),
        world_size=4,
    )

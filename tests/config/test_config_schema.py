"""The schema documents every setting, and the documents made from it are complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from msam_scale.config import Config, load_config
from msam_scale.config.describe import json_schema
from msam_scale.config.document import markdown_table
from msam_scale.config.keys import all_keys

# The interface of the config: a change here breaks other people's files.
SECTIONS = {
    "run": "name dir seed",
    "model": "source name pretrained weights args",
    "data": "train val transform workers order cache_dir cache_limit allow_commands resident "
    "memory_limit on_error max_bad_samples",
    "objective": "algorithm micro_batches rho ascent phases non_finite max_skipped_steps "
    "max_rollbacks",
    "batch": "size chunk norm_samples",
    "optimizer": "name lr momentum weight_decay clip_norm args",
    "schedule": "name warmup args",
    "training": "epochs steps label_smoothing mixup cutmix eval_every metrics compile "
    "activation_checkpointing loss_scale ema",
    "sharding": "strategy shard_group blocks deepspeed offload",
    "checkpoint": "every keep async resume",
    "monitor": "every tensorboard deepspeed_tensorboard jsonl loss_spike sharpness_every "
    "sharpness_samples progress",
    "faults": "timeout grace",
}


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    objects = {"Config": schema, **schema["$defs"]}
    for name, inner in objects.items():
        for key, field in inner.get("properties", {}).items():
            yield f"{name}.{key}", field


def test_the_keys_are_the_interface() -> None:
    wanted = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys.split()}
    assert set(all_keys()) == wanted | {"precision"}


def test_every_field_has_a_description() -> None:
    found = dict(fields(json_schema()))
    assert len(found) > len(all_keys())
    undocumented = [name for name, field in found.items() if not field.get("description")]
    assert undocumented == []


def test_the_table_has_a_row_for_every_setting() -> None:
    rows = markdown_table().splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split(" | ")] for row in rows]
    keys = [f"{row[0][2:].strip('`')}.{row[1]}".lstrip(".") for row in cells]
    assert keys == list(all_keys())
    assert {len(row) for row in cells} == {5}
    assert all(row[2] and row[3] and row[4] for row in cells)
    rho = next(row for row, key in zip(cells, keys, strict=True) if key == "objective.rho")
    assert rho[2:4] == ["a number ≥ 0, or a list of a number ≥ 0", "0.05"]


def test_the_defaults() -> None:
    config = load_config({"batch": {"size": 8}, "objective": {"micro_batches": 2}})
    assert (config.objective.algorithm, config.objective.rho) == ("msam", 0.05)
    assert (config.optimizer.name, config.schedule.name) == ("sgd", "constant")
    assert (config.checkpoint.keep, config.checkpoint.asynchronous) == (2, False)
    assert (config.monitor.every, config.precision) == (10, "float32")


def test_a_whole_number_is_a_number_but_nothing_else_is_converted() -> None:
    config = Config.model_validate({"batch": {"size": 8}, "objective": {"rho": 1}})
    assert type(config.objective.rho) is float
    for section, key, value in [
        ("objective", "rho", "1"),
        ("objective", "rho", True),
        ("run", "seed", 1.0),
        ("run", "name", 3),
        ("monitor", "jsonl", 1),
    ]:
        with pytest.raises(ValueError, match="valid"):
            Config.model_validate({"batch": {"size": 8}, section: {key: value}})

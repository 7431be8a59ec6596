"""What is in no tensor of the model comes back, and the newest checkpoint is the highest step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine_models import mini_batch
from engine_runs import Run, engine_for, settings

from msam_scale.checkpoint import step_folders
from msam_scale.engine import Engine


def _engine() -> Engine:
    training = {"ema": 0.8, "loss_scale": {"initial_power": 4, "window": 1000}}
    config: dict[str, Any] = settings(micro_batches=4, precision="float16")
    return engine_for(Run({**config, "training": training}))


def _averaged(engine: Engine) -> dict[str, torch.Tensor]:
    with engine.averaged_weights():
        return engine.full_state_dict()


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_counters_scale_and_average_are_those_that_were_saved(tmp_path: Path) -> None:
    engine = _engine()
    fresh = engine._sharding.counters()
    for number, bad in enumerate((False, True, False, True, True)):
        images, labels = mini_batch(number, dtype=torch.float32)
        assert engine.train_step((images * float("nan") if bad else images, labels)).skipped == bad
    engine.save_checkpoint(tmp_path)
    resumed = _engine()
    resumed.load_checkpoint(tmp_path)
    assert resumed.num_steps_done == 5
    assert resumed.skipped_steps.state() == engine.skipped_steps.state() == [3, 2]
    assert resumed._sharding.counters() == engine._sharding.counters() != fresh
    assert _same(_averaged(resumed), _averaged(engine))
    assert _same(resumed.full_state_dict(), engine.full_state_dict())
    assert not _same(_averaged(engine), engine.full_state_dict())


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    steps = (100_000_000, 99_999_999, 5)
    for step in steps:
        (tmp_path / f"step-{step:08d}").mkdir()
    for name in ("step-5", "damaged-step-00000009", ".step-00000007.partial-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").symlink_to(tmp_path / "step-00000005")
    found = [folder.name for folder in step_folders(tmp_path)]
    assert found == ["step-00000005", "step-99999999", "step-100000000"]

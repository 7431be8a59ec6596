"""Runs that meet numbers that are not finite: they end, or go back and on with later data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_data import ASCENT, DESCENT, KilledError, train_with_bad_data
from engine_models import mini_batch
from engine_runs import Run, engine_for, own_part, settings
from rank_pool import OnRanks
from saved_state import checkpoint_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipelines import DevicePrefetcher
from launch.cli import main
from msam_scale.config import Config
from msam_scale.engine import Engine
from msam_scale.errors import NonFiniteError, NonFiniteStepError
from msam_scale.initialization import initialize
from msam_scale.ranks import join
from msam_scale.training import prepare_run
from msam_scale.training.data import training_loader
from msam_scale.training.rollback import Rollbacks

# Bad are step 4, on mini-batch 3, and step 4 again, on mini-batch 5: both lead back to step 2.
BAD = {3: ASCENT, 5: DESCENT}
WORDS = (
    "objective.non_finite=rollback",
    "batch.size=32",
    "batch.norm_samples=8",
    "training.steps=6",
    "training.eval_every=100",
    "checkpoint.every=2",
    "checkpoint.keep=9",
    "monitor.every=1",
    "monitor.tensorboard=false",
)
# Of a step on one rank: two passes over four micro-batches.
CALLS = 8


def _lines(run: str) -> list[dict[str, Any]]:
    text = Path("runs", run, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _weights(run: str, *, step: int) -> dict[str, torch.Tensor]:
    return checkpoint_weights(f"runs/{run}/checkpoints/step-{step:08d}")


def _progress(run: str, *, step: int) -> dict[str, Any]:
    path = Path(f"runs/{run}/checkpoints/step-{step:08d}/progress.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _trained_by_hand(config: str, checkpoint: str, *, on: range) -> dict[str, torch.Tensor]:
    """Goes on from a checkpoint with these mini-batches of the data."""
    words = (*WORDS, "run.name=by-hand")
    prepared = prepare_run(config, overrides=words, world_size=1)
    loss_fn = prepared.data.task.loss_fn(dtype=torch.float32, label_smoothing=0.1)
    engine = initialize(
        prepared.model, config=prepared.config, loss_fn=loss_fn, num_steps=prepared.num_steps
    )
    engine.load_checkpoint(checkpoint)
    loader = training_loader(
        prepared.data, prepared.config, plan=engine.plan, rank=0, steps=on, state=None
    )
    batches = iter(DevicePrefetcher(loader, device=engine.ranks.device))
    for _ in on:
        engine.train_step(batches)
    return engine.full_state_dict()


@pytest.mark.layouts
def test_a_run_goes_back_and_on_with_later_data(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ("run.name=whole", "monitor.tensorboard=true")
    train_with_bad_data(config, *WORDS, *shown, bad=BAD)
    said = capsys.readouterr().err
    assert "step 4: the loss of the ascent pass was not finite; back to step 2" in said
    assert "passing over mini-batches 3 to 4 of the data" in said
    assert "step 4: the loss of the descent pass was not finite; back to step 2" in said
    assert "passing over mini-batches 5 to 6 of the data" in said
    lines = [line for line in _lines("whole") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 3, 4, 3, 4, 5, 6]
    found = [(line["rollbacks"], line["data_offset"]) for line in lines if "rollbacks" in line]
    assert found == [(1, 2), (2, 4)]
    assert lines[2]["loss"] != lines[4]["loss"], "the same step on other data"
    # Which forgets what was done again.
    board = EventAccumulator("runs/whole/tensorboard")
    board.Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]
    extra = _progress("whole", step=6)["extra"]
    assert extra["data_offset"] == 4
    assert extra["rollbacks"] == {"total": 2, "in_a_row": 0}
    assert extra["loader"]["step"] == 10
    start = "runs/whole/checkpoints/step-00000002"
    by_hand = _trained_by_hand(config, start, on=range(6, 10))
    assert all(torch.equal(by_hand[name], t) for name, t in _weights("whole", step=6).items())

    # Killed in step 4 on mini-batch 5, between the first rollback and the next checkpoint, and
    # again in step 6.
    for killed_at in (5 * CALLS - 3, 6 * CALLS + 3):
        with pytest.raises(KilledError):
            train_with_bad_data(config, *WORDS, "run.name=parts", bad=BAD, killed_at=killed_at)
    train_with_bad_data(config, *WORDS, "run.name=parts", bad=BAD)
    parts = _weights("parts", step=6)
    assert all(torch.equal(parts[name], t) for name, t in _weights("whole", step=6).items())
    assert _progress("parts", step=6)["extra"] == extra


@pytest.mark.layouts
def test_the_number_of_ranks_does_not_matter(config: str, on_ranks: OnRanks) -> None:
    words = (*WORDS, "precision=float64", f"run.dir={Path('runs').absolute()}")
    words += ("monitor.progress=false", "training.steps=5", "run.name=")
    for size in (1, 2):
        named = (*words[:-1], f"run.name=w{size}")
        on_ranks(size, train_with_bad_data, config, *named, bad={3: DESCENT})
    assert _progress("w2", step=5)["extra"]["data_offset"] == 2
    for name, tensor in _weights("w2", step=5).items():
        torch.testing.assert_close(tensor, _weights("w1", step=5)[name], rtol=1e-9, atol=1e-12)
    # Resumed on the other number of ranks, with data passed over already.
    shutil.copytree("runs/w1", "runs/moved")
    shutil.rmtree("runs/moved/checkpoints/step-00000005")
    Path("runs/moved/checkpoints/latest").write_text("step-00000004\n")
    on_ranks(2, train_with_bad_data, config, *words[:-1], "run.name=moved", bad={3: DESCENT})
    for name, tensor in _weights("moved", step=5).items():
        torch.testing.assert_close(tensor, _weights("w1", step=5)[name], rtol=1e-9, atol=1e-12)


def test_rollbacks_are_bounded(config: str) -> None:
    words = (*WORDS, "objective.max_rollbacks=1", "monitor.progress=false")
    with pytest.raises(NonFiniteError, match=r"step 4: the loss of the descent pass .* 1 allows"):
        train_with_bad_data(config, *words, bad=BAD)


@pytest.mark.parametrize("policy", ["abort", "rollback"])
def test_a_diverged_run_ends_with_one_line(
    policy: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS[1:], "optimizer.lr=1e30", "schedule.name=constant", "schedule.warmup=0"]
    words += [f"objective.non_finite={policy}", "monitor.progress=false"]
    assert main(["train", config, *words]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "step 2: the loss and the gradient of the ascent pass were not finite" in error
    assert "optimizer.lr" in error
    assert ("max_rollbacks: 3" in error) == (policy == "rollback")


def test_a_checkpoint_of_a_stop_is_passed_by(tmp_path: Path) -> None:
    run = Run(settings(micro_batches=4))
    engine = engine_for(run)
    config = Config.model_validate(
        {
            **run.config,
            "objective": {"micro_batches": 4, "non_finite": "rollback", "max_rollbacks": 2},
            "checkpoint": {"every": 2},
        }
    )
    saved = {}
    for step in range(4):
        if step >= 2:
            saved[step] = engine.save_checkpoint(tmp_path / "checkpoints")
        engine.train_step(mini_batch(step))
    bad = NonFiniteStepError("", step=3, fault="the loss was not finite")
    extra = {"data_offset": 5, "rollbacks": {"total": 4, "in_a_row": 1}}
    rollbacks = Rollbacks(config, checkpoints=[saved[3], saved[2]], step=3, extra=extra)
    assert not rollbacks.lacks_checkpoint
    assert rollbacks.go_back(engine, bad).passed_over == range(7, 9)
    assert engine.num_steps_done == 2
    assert (rollbacks.data_offset, rollbacks.total) == (7, 5)
    assert rollbacks.state(step=3)["rollbacks"] == {"total": 5, "in_a_row": 2}
    with pytest.raises(NonFiniteError, match="max_rollbacks: 2"):
        rollbacks.go_back(engine, bad)
    rollbacks.saved(saved[2], step=4)
    rollbacks.go_back(engine, bad)
    assert Rollbacks(config, checkpoints=[saved[3]], step=3, extra=extra).go_back(engine, bad)
    assert engine.num_steps_done == 3, "nothing else was kept"
    assert Rollbacks(config, checkpoints=[], step=3, extra=extra).lacks_checkpoint


def _returns_to_the_start(strategy: str, folder: str) -> None:
    """Before the first step optimizers have no state, or one of DeepSpeed's making."""
    precision = "float32" if strategy.startswith("zero") else "float64"
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    run = Run(
        settings(micro_batches=4, strategy=strategy, precision=precision),
        model="odd, all of it used",
    )

    def steps(engine: Engine, numbers: range) -> dict[str, torch.Tensor]:
        for number in numbers:
            engine.train_step(own_part(engine, mini_batch(number, dtype=dtype)))
        return engine.full_state_dict()

    engine = engine_for(run)
    engine.save_checkpoint(folder)
    expected = steps(engine, range(3))
    engine.load_checkpoint(folder)
    again = steps(engine, range(3))
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items()), join()


@pytest.mark.layouts
@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero3"])
def test_every_sharding_returns_to_the_start(
    strategy: str, tmp_path: Path, on_ranks: OnRanks
) -> None:
    on_ranks(2, _returns_to_the_start, strategy, str(tmp_path))


def test_spikes_are_counted_and_named_across_a_restart(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS[1:], "objective.algorithm=vanilla", "objective.micro_batches=null"]
    words += [
        "optimizer.lr=0",
        "training.steps=20",
        "checkpoint.every=14",
        "monitor.loss_spike=0.2",
    ]
    assert main(["train", config, *words]) == 0
    counts = [line["loss_spikes"] for line in _lines("small") if line["split"] == "train"]
    assert counts[9] == 0
    assert counts[13] < counts[-1], "some after the restart below"
    assert f"step {counts.index(1) + 1}: loss" in capsys.readouterr().err
    shutil.rmtree("runs/small/checkpoints/step-00000020")
    Path("runs/small/checkpoints/latest").write_text("step-00000014\n")
    assert main(["train", config, *words]) == 0
    again = [line["loss_spikes"] for line in _lines("small") if line["split"] == "train"]
    assert again == counts

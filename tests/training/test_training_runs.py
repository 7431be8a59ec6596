"""Whole training runs: what they write, and that a restart does not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import NUM_STEPS, FinishedRun
from live_runs import figures, metric_lines
from saved_state import assert_same_tensors, checkpoint_weights, edit_progress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cli import main
from msam_scale.config import load_config
from msam_scale.monitoring import METRICS
from msam_scale.optimization import build_schedule
from msam_scale.training.run_folder import RunFolder


def weights(run: str, *, step: int) -> dict[str, torch.Tensor]:
    return checkpoint_weights(f"runs/{run}/checkpoints/step-{step:08d}")


def train(config: str, *words: str) -> None:
    assert main(["train", config, "monitor.progress=false", *words]) == 0


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def again(finished_run: FinishedRun) -> list[str]:
    """The command that starts a copy of the finished run again, in the working folder."""
    finished_run.copied(Path("runs"))
    return ["train", str(finished_run.config), "run.dir=runs"]


# A run that is finished.


def test_a_run_writes_what_it_promises(finished_run: FinishedRun) -> None:
    folder = finished_run.folder
    assert f"Results:      {folder}" in finished_run.said
    assert "tensorboard --logdir" in finished_run.said
    assert "Validation accuracy " in finished_run.said
    assert "Averaged weights: accuracy " in finished_run.said
    assert load_config(folder / "config.yaml") == load_config(finished_run.config)
    lines = read_lines(folder)
    trained = [line for line in lines if line["split"] == "train" and "loss" in line]
    assert [line["step"] for line in trained] == [5, 10, 12], "the last one, too"
    assert [line["epoch"] for line in trained] == [pytest.approx(n / 11) for n in (5, 10, 12)]
    validations = [line for line in lines if line["split"] == "val"]
    assert [line["step"] for line in validations] == [6, 12]
    assert all(line["samples"] == 360 for line in validations)
    assert trained[-1]["loss"] < 0.9 * trained[0]["loss"]
    named = {name for line in lines for name in line} - {"step", "epoch", "split"}
    # What only some runs measure is tested with those.
    others = {"f1", "matthews_correlation", "rollbacks", "data_offset", "loss_spikes"}
    assert named == METRICS.keys() - {*others, "ema_f1", "ema_matthews_correlation"}
    assert all(0 < line["mfu"] < 2 for line in lines if "mfu" in line)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"latest", "step-00000009", "step-00000012"}, "the two newest are kept"
    assert (folder / "checkpoints/latest").read_text() == "step-00000012\n"


def test_the_learning_rate_is_that_of_the_step(finished_run: FinishedRun) -> None:
    factor = build_schedule("one_cycle", warmup=0.1, num_steps=NUM_STEPS)
    lines = [line for line in read_lines(finished_run.folder) if "lr" in line]
    assert len(lines) == 3
    for line in lines:
        assert line["lr"] == pytest.approx(0.1 * factor(line["step"] - 1))


def test_what_is_measured_on_the_way_leaves_the_run_as_it_is(finished_run: FinishedRun) -> None:
    words = ("run.dir=runs", "training.ema=null", "checkpoint.every=null")
    words += ("monitor.sharpness_every=null", "monitor.sharpness_samples=1024")
    train(str(finished_run.config), *words)
    names = ("step", "split", "loss", "lr", "grad_norm", "ascent_norm", "accuracy", "samples")
    measured = [line for line in read_lines(finished_run.folder) if "sharpness" not in line]
    expected = [[line[name] for name in names if name in line] for line in measured]
    assert figures("small", *names) == expected
    plain = weights("small", step=NUM_STEPS)
    assert all(torch.equal(plain[n], t) for n, t in checkpoint_weights(finished_run.newest).items())
    (sharp,) = [line for line in read_lines(finished_run.folder) if "sharpness" in line]
    assert sharp["step"] == 11, "11 steps are an epoch"
    assert sharp["sharpness"] > 0
    assert 0 < sharp["sharpness_error"] < 1e-3
    # Of so long a memory the average is next to the initial weights.
    first, second = (line for line in measured if line["split"] == "val")
    assert first["ema_loss"] == pytest.approx(second["ema_loss"], rel=1e-4)
    assert first["loss"] != pytest.approx(second["loss"], rel=1e-3)


def test_tensorboard_shows_the_same_figures(finished_run: FinishedRun) -> None:
    board = EventAccumulator(str(finished_run.folder / "tensorboard"))
    board.Reload()
    shown: dict[str, list[tuple[int, Any]]] = {}
    for line in read_lines(finished_run.folder):
        for name in METRICS.keys() & line.keys():
            tag = METRICS[name].tag.format(split=line["split"])
            shown.setdefault(tag, []).append((line["step"], line[name]))
    assert set(board.Tags()["scalars"]) == shown.keys()
    for tag, expected in shown.items():
        events = board.Scalars(tag)
        assert [event.step for event in events] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [event.value for event in events] == pytest.approx(values, rel=1e-6)


def test_a_finished_run_has_nothing_left(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = Path("runs/small/checkpoints/step-00000012/manifest.json")
    before, lines = newest.stat().st_mtime_ns, metric_lines("small")
    assert main(again) == 0
    assert "Nothing left to train" in capsys.readouterr().out
    assert newest.stat().st_mtime_ns == before
    assert metric_lines("small") == lines


def test_a_run_is_not_continued_with_another_result(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("runs/small/metrics.jsonl").read_text()
    for word, expected in (
        ("objective.rho=0.1", "objective.rho was 0.05 and is now 0.1"),
        ("training.ema=0.9", "training.ema was 0.9999999 and is now 0.9"),
        ("data.order=lanes:lanes=4,shards=2", "data.order was 'global' and is now"),
        ("checkpoint.resume=never", "checkpoint.resume: never"),
    ):
        assert main([*again, word]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "run.name" in error
    assert Path("runs/small/metrics.jsonl").read_text() == before
    assert main([*again, "batch.chunk=null", "data.workers=1", "objective.non_finite=abort"]) == 0


def test_a_run_is_not_continued_on_other_data(
    again: list[str], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*again, f"data.train={digits}/val", "training.steps=12"]) == 2
    assert "small.yaml" in capsys.readouterr().err
    edit_progress(
        "runs/small/checkpoints/step-00000012",
        lambda progress: progress["extra"].update(data_fingerprint="0" * 64),
    )
    assert main(again) == 2
    assert "was trained on other data: the fingerprint of data.train was" in capsys.readouterr().err


def test_a_folder_is_trained_in_by_one_process_at_a_time(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(again[1], overrides=again[2:], for_training=True)
    folder = RunFolder.find(config, fingerprint=None, steps_per_epoch=None)
    with folder.start(config):
        assert main(again) == 2
    assert "another process" in capsys.readouterr().err
    assert main(again) == 0


def test_a_run_that_has_lost_its_checkpoints_is_not_mixed_with_another(
    again: list[str],
) -> None:
    shutil.rmtree("runs/small/checkpoints")
    assert main([*again, "training.steps=2", "schedule.warmup=0"]) == 0
    board = EventAccumulator("runs/small/tensorboard")
    board.Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [2]
    assert {line["step"] for line in metric_lines("small")} == {2}


def test_a_checkpoint_of_another_optimizer_is_refused(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_progress(
        "runs/small/checkpoints/step-00000012",
        lambda progress: progress.update(optimizer="AdamW"),
    )
    assert main(again) == 2
    assert "was saved with AdamW" in capsys.readouterr().err


# Restarts.


@pytest.mark.layouts
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_bit_identical(precision: str, config: str) -> None:
    batch = ("batch.size=32", "batch.norm_samples=8")  # 44 steps an epoch
    words = (f"precision={precision}", *batch, "checkpoint.every=3", "checkpoint.keep=10")
    train(config, "run.name=whole", *words)
    shutil.copytree("runs/whole", "runs/parts")
    # As a run that died after step 7 would look, before its last checkpoint was marked.
    folder = Path("runs/parts/checkpoints")
    for step in (9, 12):
        shutil.rmtree(folder / f"step-{step:08d}")
    (folder / "latest").write_text("step-00000003\n")
    (folder / ".step-00000009.partial-dead").mkdir()
    lines = Path("runs/parts/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("runs/parts/metrics.jsonl").write_text("".join(lines[:5]) + '{"step": 8, "los')
    kept = (folder / "step-00000006/manifest.json").stat().st_mtime_ns
    train(config, "run.name=parts", *words)
    now = (folder / "step-00000006/manifest.json").stat().st_mtime_ns
    assert now == kept, "it has gone on from the newest"
    names = {f"step-{step:08d}" for step in (3, 6, 9, 12)}
    assert {path.name for path in folder.iterdir()} == {"latest", *names}
    step_12 = "checkpoints/step-00000012"
    assert_same_tensors(Path("runs/parts", step_12), Path("runs/whole", step_12))
    reported = ("step", "split", "loss", "lr", "grad_norm", "ascent_norm", "accuracy")
    assert figures("parts", *reported) == figures("whole", *reported)
    board = EventAccumulator("runs/parts/tensorboard")
    board.Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [2, 4, 6, 8, 10, 12]


# What else a run does.


def test_switched_off_reports_are_not_written(config: str) -> None:
    train(config, "monitor.jsonl=false", "monitor.tensorboard=false", "training.steps=1")
    names = sorted(path.name for path in Path("runs/small").iterdir())
    assert names == [".lock", "checkpoints", "config.yaml"]


def test_a_run_whose_steps_are_all_skipped_ends_with_a_clear_error(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimizer.lr=1e30", "objective.max_skipped_steps=3", "monitor.every=1"]
    assert main(["train", config, *words, "schedule.name=constant", "training.steps=9"]) == 1
    error = capsys.readouterr().err
    assert "3 steps in a row" in error
    assert "Traceback" not in error
    # json.loads refuses no NaN, the standard does: figures that are not finite are null.
    assert "NaN" not in Path("runs/small/metrics.jsonl").read_text()
    assert any(line["skipped_steps"] for line in metric_lines("small"))


@pytest.mark.parametrize(
    "words",
    [
        ("objective.algorithm=sam", "objective.micro_batches=1", "batch.chunk=64"),
        (
            *("model.source=timm", "model.name=resnet10t", "objective.algorithm=vanilla"),
            *("optimizer.name=adamw", "optimizer.momentum=null", "optimizer.lr=1e-3"),
            "optimizer.clip_norm=1.0",
        ),
    ],
)
def test_other_objectives_models_and_optimizers_train(words: tuple[str, ...], config: str) -> None:
    train(config, "training.steps=2", *words)
    assert metric_lines("small")[-1]["samples"] == 360


def test_a_folder_that_cannot_be_one_is_refused(config: str) -> None:
    """As a file in its place, and one that belongs to nobody."""
    Path("runs").write_text("a file")
    found = load_config(config, for_training=True)
    with pytest.raises(Exception, match="is no folder that may be written"):
        RunFolder.find(found, fingerprint=None, steps_per_epoch=None)

"""Whole training runs: what they write, and that the layout and restarts do not matter."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_state import assert_same_tensors, checkpoint_weights, edit_progress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cli import main
from msam_scale.config import load_config
from msam_scale.monitoring import METRICS


def metric_lines(run: str) -> list[dict[str, Any]]:
    text = Path("runs", run, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def figures(run: str, *names: str) -> list[list[float]]:
    return [[line[name] for name in names if name in line] for line in metric_lines(run)]


def weights(run: str, *, step: int) -> dict[str, torch.Tensor]:
    return checkpoint_weights(f"runs/{run}/checkpoints/step-{step:08d}")


def train(config: str, *words: str) -> None:
    assert main(["train", config, "monitor.progress=false", *words]) == 0


def train_on_ranks(num_ranks: int, config: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "train", config, "--nproc", str(num_ranks)]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=200, check=False
    )


def test_a_run_writes_what_it_promises(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config)
    out = capsys.readouterr().out
    assert "runs/small" in out
    assert "tensorboard --logdir runs" in out
    assert load_config("runs/small/config.yaml") == load_config(config, overrides=PROGRESS_OFF)
    lines = metric_lines("small")
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    validations = [line for line in lines if line["split"] == "val"]
    assert [line["step"] for line in validations] == [6, 12]
    assert all(line["samples"] == 360 for line in validations)
    assert lines[-2]["loss"] < 0.9 * lines[0]["loss"]
    named = {name for line in lines for name in line} - {"step", "epoch", "split"}
    # What only some runs measure is tested with those.
    others = {name for name in METRICS if name.startswith("ema_")}
    others |= {"f1", "matthews_correlation", "rollbacks", "data_offset", "loss_spikes"}
    assert named == METRICS.keys() - {*others, *_OF_SHARPNESS}
    assert all(0 < line["mfu"] < 2 for line in lines if "mfu" in line)
    assert Path("runs/small/checkpoints/latest").read_text() == "step-00000012\n"
    assert sorted(path.name for path in Path("runs/small/checkpoints").iterdir()) == [
        "latest",
        "step-00000012",
    ]


_OF_SHARPNESS = ("sharpness", "sharpness_error")


def test_sharpness_on_the_way_leaves_the_run_as_it_is(config: str) -> None:
    train(config, "run.name=plain")
    train(config, "run.name=measured", "monitor.sharpness_every=1", "monitor.sharpness_samples=32")
    found = [line for line in metric_lines("measured") if "sharpness" in line]
    assert [line["step"] for line in found] == [11], "11 steps are an epoch"
    assert found[0]["sharpness"] > 0
    assert 0 < found[0]["sharpness_error"] < 1e-3
    board = EventAccumulator("runs/measured/tensorboard")
    board.Reload()
    assert [event.step for event in board.Scalars("sharpness/train")] == [11]
    plain = weights("plain", step=12)
    assert all(torch.equal(plain[name], t) for name, t in weights("measured", step=12).items())


def test_validation_measures_the_averaged_weights_too(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("training.steps=3", "training.eval_every=2")
    train(config, "run.name=plain", *words)
    capsys.readouterr()
    # After 2 and 3 steps of so long a memory the average is next to the initial weights.
    train(config, "run.name=averaged", "training.ema=0.9999999", *words)
    assert "Averaged weights: accuracy " in capsys.readouterr().out
    names = ("step", "loss", "grad_norm", "accuracy", "samples")
    assert figures("averaged", *names) == figures("plain", *names)
    plain = weights("plain", step=3)
    assert all(torch.equal(plain[name], t) for name, t in weights("averaged", step=3).items())
    lines = [line for line in metric_lines("averaged") if line["split"] == "val"]
    assert [line["step"] for line in lines] == [2, 3]
    assert lines[0]["ema_loss"] == pytest.approx(lines[1]["ema_loss"], rel=1e-5)
    assert lines[0]["loss"] != pytest.approx(lines[1]["loss"], rel=1e-4)
    board = EventAccumulator("runs/averaged/tensorboard")
    board.Reload()
    for name in ("ema_loss", "ema_accuracy"):
        events = board.Scalars(f"{name}/val")
        assert [event.value for event in events] == pytest.approx([line[name] for line in lines])
    assert main(["train", config, "run.name=averaged", "training.ema=0.9", *words]) == 2
    assert "training.ema was 0.9999999 and is now 0.9" in capsys.readouterr().err


PROGRESS_OFF = ("monitor.progress=false",)


def test_tensorboard_shows_the_same_figures(config: str) -> None:
    train(config)
    board = EventAccumulator("runs/small/tensorboard")
    board.Reload()
    for split in ("train", "val"):
        lines = [line for line in metric_lines("small") if line["split"] == split]
        events = board.Scalars(f"loss/{split}")
        assert [event.step for event in events] == [line["step"] for line in lines]
        assert [event.value for event in events] == pytest.approx([x["loss"] for x in lines])
    tags = {metric.tag.format(split=split) for metric in METRICS.values() for split in SPLITS}
    assert set(board.Tags()["scalars"]) <= tags


SPLITS = ("train", "val")


def test_switched_off_reports_are_not_written(config: str) -> None:
    train(config, "monitor.jsonl=false", "monitor.tensorboard=false", "training.steps=1")
    assert sorted(path.name for path in Path("runs/small").iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
    ]


def test_the_number_of_ranks_does_not_matter(config: str) -> None:
    """In float64, through real launchers: losses, norms and accuracies of 1, 2 and 4 ranks."""
    words = ("precision=float64", "training.steps=4", "training.eval_every=2")
    train(config, "run.name=w1", *words)
    train(config, "run.name=chunks", "batch.chunk=16", "data.workers=2", *words)
    for num_ranks in (2, 4):
        done = train_on_ranks(num_ranks, config, f"run.name=w{num_ranks}", *words)
        assert done.returncode == 0, done.stderr
    names = ("loss", "grad_norm", "ascent_norm", "accuracy", "samples")
    expected = figures("w1", *names)
    for run in ("chunks", "w2", "w4"):
        for line, line_of_one in zip(figures(run, *names), expected, strict=True):
            assert line == pytest.approx(line_of_one, rel=1e-9)
        for name, tensor in weights(run, step=4).items():
            torch.testing.assert_close(tensor, weights("w1", step=4)[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_resumed_run_is_bit_identical(precision: str, config: str) -> None:
    batch = ("batch.size=32", "batch.norm_samples=8")  # 44 steps an epoch
    words = (f"precision={precision}", *batch, "checkpoint.every=3", "checkpoint.keep=10")
    train(config, "run.name=whole", *words)
    train(config, "run.name=parts", *words)
    # As a run that died after step 7 would look: checkpoints to step 6, metrics to step 7.
    folder = Path("runs/parts/checkpoints")
    for step in (9, 12):
        for path in (folder / f"step-{step:08d}").iterdir():
            path.unlink()
        (folder / f"step-{step:08d}").rmdir()
    (folder / "latest").write_text("step-00000006\n")
    lines = Path("runs/parts/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("runs/parts/metrics.jsonl").write_text("".join(lines[:5]) + '{"step": 8, "los')
    train(config, "run.name=parts", *words)
    step = "checkpoints/step-00000012"
    assert_same_tensors(Path("runs/parts", step), Path("runs/whole", step))
    names = ("step", "loss", "lr", "grad_norm", "ascent_norm", "accuracy")
    assert figures("parts", *names) == figures("whole", *names)


def test_a_finished_run_has_nothing_left(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config, "training.steps=2")
    before = Path("runs/small/checkpoints/step-00000002/manifest.json").stat()
    capsys.readouterr()
    train(config, "training.steps=2")
    assert "Nothing left to train" in capsys.readouterr().out
    assert Path("runs/small/checkpoints/step-00000002/manifest.json").stat() == before


def test_a_run_is_not_continued_with_another_result(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, "training.steps=2")
    before = Path("runs/small/metrics.jsonl").read_text()
    assert main(["train", config, "training.steps=2", "objective.rho=0.1"]) == 2
    error = capsys.readouterr().err
    assert "objective" in error
    assert "run.name" in error
    assert main(["train", config, "training.steps=2", "checkpoint.resume=never"]) == 2
    assert "checkpoint.resume: never" in capsys.readouterr().err
    assert Path("runs/small/metrics.jsonl").read_text() == before
    train(config, "training.steps=2", "batch.chunk=16", "data.workers=1")


def test_a_folder_is_trained_in_by_one_process_at_a_time(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, "training.steps=1", "checkpoint.every=1")
    with Path("runs/small/.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["train", config, "training.steps=1"]) == 2
    assert "another process" in capsys.readouterr().err
    train(config, "training.steps=1")


def test_a_kill_between_a_checkpoint_and_its_mark_loses_nothing(config: str) -> None:
    words = ("checkpoint.every=2", "checkpoint.keep=9", "training.steps=6")
    train(config, "run.name=whole", *words)
    train(config, "run.name=killed", *words)
    folder = Path("runs/killed/checkpoints")
    shutil.rmtree(folder / "step-00000006")
    (folder / "latest").write_text("step-00000002\n")
    (folder / ".step-00000004.partial-dead").mkdir()
    train(config, "run.name=killed", *words)
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step-00000002",
        "step-00000004",
        "step-00000006",
    ]
    step = "checkpoints/step-00000006"
    assert_same_tensors(Path("runs/killed", step), Path("runs/whole", step))


def test_an_interrupted_run_without_a_checkpoint_is_not_mixed_with_another(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, "training.steps=2")
    shutil.rmtree("runs/small/checkpoints")
    assert main(["train", config, "training.steps=2", "run.seed=7"]) == 2
    assert "run.seed was 0 and is now 7" in capsys.readouterr().err
    train(config, "training.steps=2")
    board = EventAccumulator("runs/small/tensorboard")
    board.Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [2]
    assert [line["step"] for line in metric_lines("small")] == [2, 2]


def test_a_checkpoint_of_another_optimizer_is_refused(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, "training.steps=1")
    edit_progress(
        "runs/small/checkpoints/step-00000001",
        lambda progress: progress.update(optimizer="AdamW"),
    )
    assert main(["train", config, "training.steps=1"]) == 2
    assert "was saved with AdamW" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks_with_one_line(sent: signal.Signals, config: str) -> None:
    words = ["--nproc", "2", "training.steps=100000", "monitor.every=1"]
    command = [sys.executable, "-m", "launch.cli", "train", config, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "step 1/" in process.stderr.readline()
        process.send_signal(sent)
        rest = process.stderr.read()
    assert process.returncode == 75
    assert rest.count(f"msam-scale: {sent.name}: stopping") == 1
    assert "Traceback" not in rest


def test_only_the_newest_checkpoints_are_kept(config: str) -> None:
    train(config, "training.steps=5", "checkpoint.every=1", "checkpoint.keep=2")
    names = {path.name for path in Path("runs/small/checkpoints").iterdir()}
    assert names == {"latest", "step-00000004", "step-00000005"}


def test_a_diverged_run_ends_with_a_clear_error(
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
        ("objective.algorithm=vanilla",),
        ("objective.algorithm=sam", "objective.micro_batches=1", "batch.chunk=64"),
        ("optimizer.name=adamw", "optimizer.momentum=null", "optimizer.lr=1e-3"),
        ("model.source=timm", "model.name=resnet10t", "optimizer.clip_norm=1.0"),
    ],
)
def test_other_objectives_models_and_optimizers_train(words: tuple[str, ...], config: str) -> None:
    train(config, "training.steps=3", *words)
    assert metric_lines("small")[-1]["samples"] == 360


def test_damaged_data_stops_the_run(
    config: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path("copy")
    copy.mkdir()
    for path in (digits / "train").rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(digits / "train")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    shard = sorted(copy.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    place = content.index(b"NUMPY")
    content[place + 150] ^= 1
    shard.write_bytes(content)
    assert main(["train", config, "data.train=copy", "training.steps=22"]) == 2
    error = capsys.readouterr().err
    assert shard.name in error
    assert "Traceback" not in error

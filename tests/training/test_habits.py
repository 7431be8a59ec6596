"""What people do with runs: pipes, terminals, corrected configs, longer runs, folders of theirs."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from faults import replaced
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import msam_scale
from launch.cli import main
from launch.local_ranks import start_ranks
from msam_scale.checkpoint import read_weights
from msam_scale.config import load_config
from msam_scale.config.sections.faults import FaultsSection
from msam_scale.errors import UserError
from msam_scale.models import ModelRequest, build_model
from msam_scale.monitoring import Monitor
from msam_scale.monitoring.deepspeed_events import DeepSpeedEvents
from msam_scale.monitoring.metric_lines import read_metric_lines
from msam_scale.monitoring.throughput import peak_of_data_sheet
from msam_scale.ranks import join
from msam_scale.step_summary import StepResult
from msam_scale.supervision.stop_request import StopRequest
from msam_scale.supervision.supervision import Supervision
from msam_scale.training import prepare_run, run_training


def checkpoints(run: str) -> list[str]:
    return sorted(path.name for path in Path("runs", run, "checkpoints").glob("step-*"))


@pytest.fixture
def pipe_without_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's own stdout and stderr lead into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
            monkeypatch.setattr(sys, f"__{name}__", stream)
        yield


@pytest.mark.usefixtures("pipe_without_reader")
def test_a_run_whose_output_nobody_reads_is_trained_and_saved(config: str) -> None:
    assert main(["train", config, "training.steps=4", "training.eval_every=4"]) == 0
    assert checkpoints("small") == ["step-00000004"]


@pytest.mark.usefixtures("pipe_without_reader")
@pytest.mark.parametrize(("words", "code"), [("config schema", 0), ("config check nowhere", 2)])
def test_no_command_minds_that_nobody_reads_it(words: str, code: int) -> None:
    assert main(words.split()) == code


def test_a_full_disk_under_the_output_loses_lines_only(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "__stderr__", full)
        assert main(["train", config, "training.steps=2", "data.val=null",
                     "training.eval_every=null"]) == 0  # fmt: skip
    assert checkpoints("small") == ["step-00000002"]


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest(grace=60, code=75)
    try:
        stop.listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        stop.close()
        signal.signal(signal.SIGHUP, before)


def test_a_program_of_the_ranks_name_in_the_working_folder_is_not_theirs(
    config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither it nor modules of torch's names: ranks import what `msam-scale` itself imports."""
    for name in ("launch", "torch", "msam_scale"):
        Path(f"{name}.py").write_text("raise SystemExit(0)\n")
    assert start_ranks(1, [config, "model.name=wrn-11-1"], grace=5) == 2
    assert "model.name" in capfd.readouterr().err


def test_a_run_that_fails_before_its_first_step_lets_go_of_its_folder(config: str) -> None:
    """Also while a program that has caught the error holds its traceback."""
    prepared = prepare_run(config, world_size=1)
    stop = Supervision(FaultsSection(), code=75)
    Path("runs/small/config.yaml").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run_training(prepared, ranks=join(), supervision=stop)
    held = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    assert not [path for path in held if "runs/small" in path]


def test_a_dry_run_does_all_but_the_first_step(
    config: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a new run, of one that goes on and has another result, and of data that are damaged."""
    words = ["train", config, "--dry-run", "monitor.progress=false"]
    assert main([*words, "monitor.deepspeed_tensorboard=board"]) == 0
    output = capsys.readouterr()
    assert output.out == "dry run: all but the first step is done; runs/small is as it was\n"
    assert output.err.startswith("wrn-10-1 (")
    assert "the first mini-batch is there, 128 samples of it on this rank" in output.err
    assert not Path("runs").exists()
    assert not Path("board").exists()
    train(config, "training.steps=2")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    capsys.readouterr()
    assert main([*words, "training.steps=4"]) == 0
    assert "resumed after step 2 of 4" in capsys.readouterr().err
    assert main([*words, "objective.rho=0.3"]) == 2
    shutil.copytree(digits, "data")
    for shard in Path("data/train").glob("*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(content[:640] + bytes(len(content) - 1664) + content[-1024:])
    assert main([*words, "data.train=data/train", "run.name=other"]) == 2
    assert "data/train" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_other_validation_data_are_told(
    config: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.val={digits}/val", "training.eval_every=null", "monitor.progress=false"]
    assert main(["train", config, *words, "training.steps=2"]) == 0
    words[0] = f"data.val={digits}/train"
    capsys.readouterr()
    assert main(["train", config, *words, "training.steps=4"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "data.val" in line]
    assert said.startswith(f"warning: data.val: {digits}/train has other samples than before (")


def test_a_start_that_was_overtaken_does_not_overwrite(config: str) -> None:
    """What decides whether a run begins or goes on is looked at once more under the lock."""
    stop = Supervision(FaultsSection(), code=75)
    late = prepare_run(config, overrides=["optimizer.lr=0.5"], world_size=1)
    train(config, "training.steps=2", "checkpoint.every=1")
    before = Path("runs/small/config.yaml").read_text()
    with pytest.raises(UserError, match="has trained in this folder while this one was starting"):
        run_training(late, ranks=join(), supervision=stop)
    assert Path("runs/small/config.yaml").read_text() == before


@pytest.mark.parametrize(("step", "saved"), [(3, 4), (6, 6)])
def test_a_run_whose_folder_is_taken_away_saves_and_says_so(
    step: int, saved: int, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    advance = Monitor.advance
    done = itertools.count(1)

    def advance_and_rename(monitor: Monitor) -> None:
        advance(monitor)
        if next(done) == step:
            Path("runs/small").rename("runs/elsewhere")

    words = ["data.val=null", "monitor.every=2", "training.steps=6", "monitor.progress=false"]
    with replaced(Monitor, "advance", advance_and_rename):
        assert main(["train", config, *words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        "msam-scale: runs/small was removed or renamed while the run was writing to it; the state "
        f"after step {saved} is saved in runs/small/checkpoints/step-{saved:08d}, which is all "
        "that is there now"
    )
    assert main(["train", config, *words]) == 0
    assert Path("runs/elsewhere/metrics.jsonl").exists()


def steps_of(run: str) -> list[int]:
    return [line["step"] for line in read_metric_lines(Path("runs", run, "metrics.jsonl"))]


def train(config: str, *words: str) -> None:
    plain = ("data.val=null", "training.eval_every=null", "monitor.every=1")
    assert main(["train", config, "monitor.progress=false", *plain, *words]) == 0


def test_a_run_that_ended_before_its_first_step_leaves_its_folder_free(config: str) -> None:
    """With both values of `resume`; what it has written of itself is the corrected run's."""
    Path("runs/small/checkpoints").mkdir(parents=True)
    broken = load_config(config, overrides=["run.seed=7", "objective.rho=3"])
    Path("runs/small/config.yaml").write_text(broken.to_yaml())
    train(config, "training.steps=2", "checkpoint.resume=never")
    assert load_config("runs/small/config.yaml").run.seed == 0
    assert steps_of("small") == [1, 2]


def test_a_finished_run_is_lengthened(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config, "training.steps=2")
    capsys.readouterr()
    train(config, "training.steps=4", "training.compile=false", "training.eval_every=null")
    assert steps_of("small") == [1, 2, 3, 4]
    lines = read_metric_lines(Path("runs/small/metrics.jsonl"))
    before, after = f"{lines[1]['lr']:.4g} in step 2", f"{lines[2]['lr']:.4g} in step 3"
    told = capsys.readouterr().err
    assert "lengthened from 2 to 4 steps" in told
    assert before in told
    assert after in told
    train(config, "run.name=whole", "training.steps=4")
    whole = read_metric_lines(Path("runs/whole/metrics.jsonl"))
    assert lines[2]["lr"] == whole[2]["lr"], "the schedule is that of a run of the new length"


def test_a_run_is_not_shortened(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config, "training.steps=2")
    assert main(["train", config, "training.steps=1"]) == 2
    error = capsys.readouterr().err
    assert "training.steps was 2 and is now 1" in error
    assert "checkpoint.start_from" in error


def test_what_changes_rounding_only_may_change_on_resume(config: str) -> None:
    words = ("training.steps=2", "checkpoint.every=1", "checkpoint.keep=9")
    train(config, *words)
    shutil.rmtree("runs/small/checkpoints/step-00000002")
    Path("runs/small/checkpoints/latest").write_text("step-00000001\n")
    train(config, *words, "training.activation_checkpointing=true")
    assert steps_of("small") == [1, 2]


def test_another_run_starts_from_a_finished_one_and_goes_on_from_its_own(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another rate, seed and objective; at step 0, with the weights and the momentum."""
    train(config, "training.steps=2")
    words = (
        "run.name=second", "checkpoint.start_from=runs/small", "run.seed=5", "optimizer.lr=0",
        "optimizer.weight_decay=0", "objective.micro_batches=2", "training.steps=2",
    )  # fmt: skip
    train(config, *words, "checkpoint.every=1", "checkpoint.keep=9")
    assert steps_of("second") == [1, 2]
    first, second = (
        dict(read_weights(Path(f"runs/{run}/checkpoints/step-00000002")))
        for run in ("small", "second")
    )
    trained = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in trained)
    shutil.rmtree("runs/second/checkpoints/step-00000002")
    Path("runs/second/checkpoints/latest").write_text("step-00000001\n")
    capsys.readouterr()
    train(config, *words, "monitor.progress=true")
    assert "resumed after step 1 of 2" in capsys.readouterr().err


def test_a_path_to_resume_names_start_from(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config, "checkpoint.resume=runs/other"]) == 2
    assert "checkpoint.start_from=runs/other" in capsys.readouterr().err
    assert main(["train", config, "checkpoint.start_from=runs/other"]) == 2
    assert "command line: checkpoint.start_from: runs/other" in capsys.readouterr().err


def test_the_command_says_its_version_and_what_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"msam-scale {version('msam-scale')}\n"
    assert main([]) == 2
    error = capsys.readouterr().err
    for command in ("train", "export", "config"):
        assert command in error
    assert main(["train", "run.yaml", "--lr", "0.1"]) == 2
    assert "a setting is a word like optimizer.lr=0.1" in capsys.readouterr().err


def test_torchruns_summary_has_the_line_of_a_rank_that_failed(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "error.json")
    assert main(["train", config, "model.name=wrn-11-1"]) == 2
    line = capsys.readouterr().err.strip()
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file="error.json")
    summary = ChildFailedError("train", {0: failure}).format_msg()
    assert line in summary


def test_a_step_is_printed_as_its_figures() -> None:
    engine = msam_scale.initialize(
        torch.nn.Linear(6, 4),
        config={"batch": {"size": 8}, "objective": {"micro_batches": 4}, "optimizer": {"lr": 0.1}},
    )
    step = engine.train_step((torch.ones(8, 6), torch.zeros(8, dtype=torch.int64)))
    shown = f"loss={step.loss:.6g}, grad_norm={step.grad_norm:.6g}, ascent_norm="
    assert repr(step).startswith(f"StepResult({shown}")
    assert repr(step).endswith("skipped=False)")


def test_an_ascent_is_measured_where_it_is_asked_for() -> None:
    """On a loss whose gradient is known: w is 3 in each of four places, and ε adds 1 to each."""

    def loss(curvature: float) -> Callable[[torch.nn.Linear, torch.Tensor], torch.Tensor]:
        return lambda model, batch: (model.weight + curvature * model.weight**2 / 2).sum()

    for curvature, alignment in ((0.0, 1.0), (2.0, (7 + 9) / 2 / 7)):
        model = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.constant_(model.weight, 3.0)
        config = {
            "batch": {"size": 8, "check_split": False},
            "objective": {"micro_batches": 4, "rho": 2.0},
            "optimizer": {"lr": 0.0},
        }
        engine = msam_scale.initialize(model, config=config, loss_fn=loss(curvature))
        step = engine.train_step(torch.ones(8, 4), measure_fidelity=True)
        assert step.perturbation_norm == pytest.approx(2.0)
        assert step.alignment == pytest.approx(alignment)
        plain = engine.train_step(torch.ones(8, 4))
        assert plain.perturbation_norm is plain.alignment is None


def test_a_start_says_what_starts_and_what_its_first_ascent_does(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, "training.steps=4", "monitor.progress=true")
    told = capsys.readouterr().err.splitlines()
    first = next(line for line in told if line.startswith("wrn-10-1"))
    for word in ("parameters", "10 classes", "replicated", "B = 128", "m = 4", "4 steps"):
        assert word in first
    ascent = next(line for line in told if "at w + ε" in line)
    found = re.search(r"loss ([0-9.]+) at w, ([0-9.]+) at w \+ ε", ascent)
    assert found is not None
    assert float(found[2]) > float(found[1]), "the ascent ascends"
    assert "ρ = 0.05, mean ‖ε‖ = 0.05, " in ascent
    assert "over 4 micro-batches in 1 group(s)" in ascent
    figures = re.search(r"‖g_j‖ = ([0-9.]+) .* w \+ ε, ([0-9.]+) of ‖g_j‖ ‖ε‖ more", ascent)
    assert figures is not None
    rise = (float(found[2]) - float(found[1])) / (0.05 * float(figures[1]))
    assert float(figures[2]) == pytest.approx(rise, rel=0.02)
    lines = [line for line in told if "step 3/4" in line]
    assert re.match(r"\d\d:\d\d:\d\d  step 3/4 .* 0:00:0\d left", lines[0])


def test_a_start_says_what_the_weights_of_a_file_leave_anew(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for num_classes, told in ((7, "4 steps; initialised anew: head"), (10, "4 steps")):
        request = ModelRequest("wrn-10-1", num_classes, num_channels=1)
        save_file(build_model("msam_scale", request, seed=1).state_dict(), "w.safetensors")
        words = ("training.steps=4", "model.weights=w.safetensors", f"run.name=of{num_classes}")
        train(config, *words, "monitor.progress=true")
        lines = capsys.readouterr().err.splitlines()
        assert next(line for line in lines if line.startswith("wrn-10-1")).endswith(told)


def test_float16_is_as_fast_as_bfloat16() -> None:
    """And not as float32: the MFU was several times too high."""
    half, brain, single = (
        peak_of_data_sheet("NVIDIA H200", dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    )
    assert half == brain
    assert half is not None
    assert single is not None
    assert half > 5 * single


def test_deepspeeds_events_of_steps_that_are_done_again_are_hidden() -> None:
    events = DeepSpeedEvents("board", batch_size=8, every=1)
    zero = torch.zeros(())
    result = StepResult(zero > 0, zero.long(), zero, zero, zero)
    for step in (1, 2, 3, 2, 3):
        events.write(result, learning_rate=0.1, num_steps_done=step)
    events.close()
    again = DeepSpeedEvents("board", batch_size=8, every=1)
    again.write(result, learning_rate=0.1, num_steps_done=3)
    again.close()
    board = EventAccumulator("board")
    board.Reload()
    assert [event.step for event in board.Scalars("Train/Samples/lr")] == [8, 16, 24]

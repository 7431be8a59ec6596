"""Writing: beside training, on a disk that fills up, and cut off anywhere."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import mini_batch
from engine_runs import Run, engine_for, own_part, settings
from faults import replaced
from rank_pool import OnRanks
from saved_state import checkpoint_weights

from launch.cli import main
from msam_scale.checkpoint import (
    NotWrittenError,
    Progress,
    commit,
    faults_of,
    find_checkpoint,
    mark_latest,
    snapshot,
    step_folders,
)
from msam_scale.checkpoint.folder import clear_leftovers, prune_checkpoints
from msam_scale.engine import Engine
from msam_scale.sharding.pieces import Piece


def _step(engine: Engine, number: int) -> None:
    engine.train_step(own_part(engine, mini_batch(number, dtype=engine._precision.parameters)))


@contextmanager
def _held_back() -> Iterator[threading.Event]:
    """Writing waits for the event, so that training is surely ahead of it."""
    go_on, original = threading.Event(), commit._write_own

    def write(*arguments: Any, **named: Any) -> Any:
        assert go_on.wait(60)
        return original(*arguments, **named)

    with replaced(commit, "_write_own", write):
        yield go_on


def _written_while_training(config: dict[str, Any], folder: str) -> tuple[bool, bool]:
    """Whether a checkpoint holds the weights of when it began, and whether training was ahead."""
    engine = engine_for(Run(config))
    same = []
    for number in range(2):  # the second uses the memory of the first
        _step(engine, 2 * number)
        expected = engine.full_state_dict()
        with _held_back() as go_on:
            pending = engine.begin_checkpoint(f"{folder}/{number}")
            _step(engine, 2 * number + 1)
            was_ahead = not pending.is_done
            go_on.set()
            saved = pending.result()
        engine.ranks.gathered(None)
        found = checkpoint_weights(saved)
        same.append(all(torch.equal(found[name], value) for name, value in expected.items()))
    return all(same), was_ahead


@pytest.mark.parametrize("sharding", [{"strategy": "replicated"}, {"strategy": "fsdp"}])
def test_training_goes_on_while_a_checkpoint_is_written(
    sharding: dict[str, Any], tmp_path: Path, on_ranks: OnRanks
) -> None:
    config = settings(micro_batches=4, **sharding)
    assert on_ranks(2, _written_while_training, config, str(tmp_path)) == [(True, True)] * 2
    assert not [fault for folder in tmp_path.glob("*/step-*") for fault in faults_of(folder)]


def test_without_staging_later_steps_would_get_into_the_file(tmp_path: Path) -> None:
    with replaced(snapshot.Staging, "staged", lambda self, one: one):
        same, _ = _written_while_training(settings(micro_batches=4), str(tmp_path))
    assert not same


def test_one_is_written_at_a_time_and_all_arrive(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    pending, original = [], commit._write_own

    def write_slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.2)
        return original(*arguments, **named)

    with replaced(commit, "_write_own", write_slowly):
        for number in range(4):
            _step(engine, number)
            pending.append(engine.begin_checkpoint(tmp_path, keep=2))
            assert all(one.is_done for one in pending[:-1])
        engine.load_checkpoint(pending[-1].result())
    assert [folder.name for folder in step_folders(tmp_path)] == ["step-00000003", "step-00000004"]


# A disk that is full.


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Longer files are refused by the kernel, with EFBIG in the place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _begin_and_wait(engine: Engine, folder: str) -> Path:
    return engine.begin_checkpoint(folder).result()


def _save_without_room(config: dict[str, Any], folder: str, full_rank: int) -> list[str]:
    engine = engine_for(Run(config))
    engine.save_checkpoint(folder)
    _step(engine, 0)
    said = []
    for begins in (False, True):
        limit = 1000 if engine.ranks.rank == full_rank else 1 << 40
        save = _begin_and_wait if begins else Engine.save_checkpoint
        with _files_of_at_most(limit), pytest.raises(NotWrittenError) as caught:
            save(engine, folder)
        said.append(str(caught.value))
    engine.load_checkpoint(folder)
    assert engine.num_steps_done == 0
    _step(engine, 0)
    engine.save_checkpoint(folder)
    return said


@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_full_disk_of_any_rank_leaves_what_was_there(
    full_rank: int, tmp_path: Path, on_ranks: OnRanks
) -> None:
    config = settings(micro_batches=4, strategy="fsdp")
    said = on_ranks(2, _save_without_room, config, str(tmp_path), full_rank)
    assert said[0] == said[1]
    assert all(f"rank {full_rank}: " in text and "File too large" in text for text in said[0])
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "latest",
        "step-00000000",
        "step-00000001",
    ]
    assert not [fault for folder in step_folders(tmp_path) for fault in faults_of(folder)]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_run_ends_with_its_last_checkpoint_when_the_disk_is_full(
    asynchronous: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    full, original = {4}, commit._write_own

    def write(snapshot: Any, partial: Path, *, rank: int) -> Any:
        if snapshot.progress.step in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(snapshot, partial, rank=rank)

    words = ["train", config, "monitor.progress=false", "data.val=null", "training.steps=6"]
    words += ["checkpoint.every=2", f"checkpoint.async={asynchronous}", "checkpoint.keep=1"]
    with replaced(commit, "_write_own", write):
        assert main(words) == 2
    error = capsys.readouterr().err
    folder = Path("runs/small/checkpoints")
    assert error.count("\n") == 1
    assert f"msam-scale: {folder}/step-00000004: the checkpoint could not be written: " in error
    assert "No space left on device; a checkpoint takes " in error
    assert error.endswith(" GB are free there\n")
    assert [path.name for path in step_folders(folder)] == ["step-00000002"], "the last good one"
    assert main(words) == 0, "there is room again"


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_weights_that_are_not_finite_prune_no_good_checkpoint(
    asynchronous: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The update itself overflows: its loss and gradient were finite."""
    words = ["train", config, "monitor.progress=false", "data.val=null", "training.steps=6"]
    words += ["checkpoint.every=1", f"checkpoint.async={asynchronous}", "checkpoint.keep=1"]
    words += ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.momentum=null"]
    assert main([*words, "training.steps=2"]) == 0
    kept = step_folders(Path("runs/small/checkpoints"))
    assert main([*words, "optimizer.lr=1e38", "run.name=other"]) == 1
    error = capsys.readouterr().err
    assert "model/" in error
    assert " has values that are not finite after an update whose losses and gradients were: step-"
    assert "Traceback" not in error
    assert step_folders(Path("runs/small/checkpoints")) == kept
    assert not step_folders(Path("runs/other/checkpoints"))


# Cut off between two things.


class _KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize(
    ("stage", "newest"),
    [
        ("_write_own", 1),
        ("_write_progress", 1),
        ("_write_manifest", 1),
        ("_give_name", 1),
        ("mark_latest", 2),
        ("prune_checkpoints", 2),
    ],
)
@pytest.mark.parametrize("replaces", [False, True])
def test_a_save_that_is_cut_off_leaves_whole_checkpoints(
    stage: str, newest: int, replaces: bool, tmp_path: Path
) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    _step(engine, 0)
    engine.save_checkpoint(tmp_path)
    _step(engine, 1)
    if replaces:
        engine.save_checkpoint(tmp_path)
        newest = 2

    def cut_off(*_: Any, **__: Any) -> None:
        raise _KilledError

    with replaced(commit, stage, cut_off), pytest.raises(_KilledError):
        engine.save_checkpoint(tmp_path, keep=1)
    clear_leftovers(tmp_path)
    folders = step_folders(tmp_path)
    assert int(folders[-1].name.removeprefix("step-")) == newest
    assert not [fault for folder in folders for fault in faults_of(folder)]
    assert {path.name for path in tmp_path.iterdir()} == {"latest", *(f.name for f in folders)}
    assert find_checkpoint(tmp_path) in folders, "`latest` names one that is there"
    engine.save_checkpoint(tmp_path, keep=1)
    assert [folder.name for folder in step_folders(tmp_path)] == ["step-00000002"]


def test_a_kill_while_latest_is_written_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    engine.save_checkpoint(tmp_path)
    (tmp_path / ".latest.partial-dead").write_bytes(b"step-")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "step-00000000"}


def test_one_that_is_being_replaced_comes_back(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    saved = engine.save_checkpoint(tmp_path)

    def cut_off(*_: Any) -> None:
        raise _KilledError

    with replaced(commit, "rename_to_new", cut_off), pytest.raises(_KilledError):
        engine.save_checkpoint(tmp_path)
    assert not saved.exists()
    clear_leftovers(tmp_path)
    assert not list(faults_of(saved))


def test_an_incomplete_folder_does_not_count_as_kept(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    for number in range(3):
        engine.save_checkpoint(tmp_path, keep=2)
        (tmp_path / f"step-0000001{number}").mkdir()
        _step(engine, number)
    names = [folder.name for folder in step_folders(tmp_path)]
    assert names[:2] == ["step-00000001", "step-00000002"]


def test_the_one_that_latest_names_stays(tmp_path: Path) -> None:
    """As after a run that has gone back to it, and has damaged ones after it."""
    engine = engine_for(Run(settings(micro_batches=4)))
    folders = []
    for number in range(4):
        folders.append(engine.save_checkpoint(tmp_path))
        _step(engine, number)
    mark_latest(tmp_path, folders[1])
    prune_checkpoints(tmp_path, keep=1)
    assert step_folders(tmp_path) == [folders[1], folders[3]]
    assert find_checkpoint(tmp_path) == folders[1]


def test_parts_of_one_tensor_are_staged_apart() -> None:
    """As a rank has them whose range of DeepSpeed's flat partition begins within a tensor."""
    tensor = torch.arange(12.0)
    pieces = [Piece.whole("weight", tensor).part(start, start + 4) for start in (0, 8)]
    progress = Progress(
        step=1, skipped_steps=[0, 0], optimizer="", counters={}, config={}, extra={}, versions={}
    )
    staging = snapshot.Staging()
    staged = staging.staged(snapshot.Snapshot(Path(), progress, pieces, keep=None))
    tensor.zero_()
    assert [piece.values.tolist() for piece in staged.pieces] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert [piece.start for piece in staged.pieces] == [0, 8]


def test_extra_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    with pytest.raises((TypeError, ValueError)):
        engine.save_checkpoint(tmp_path, extra={"tensor": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_one_whose_replacement_gets_no_name_stays(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    saved = engine.save_checkpoint(tmp_path)

    def refused(*_: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with replaced(commit, "rename_to_new", refused), pytest.raises(NotWrittenError):
        engine.save_checkpoint(tmp_path)
    assert not list(faults_of(saved))
    assert {path.name for path in tmp_path.iterdir()} == {"latest", saved.name}


def test_old_ones_that_cannot_be_removed_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with replaced(commit, "prune_checkpoints", refused):
        saved = engine.save_checkpoint(tmp_path, keep=1)
    assert not list(faults_of(saved))
    assert "old checkpoints stay: " in caplog.text


def test_a_failure_that_nobody_asks_for_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    engine.save_checkpoint(tmp_path)
    with _files_of_at_most(1000):
        pending = engine.begin_checkpoint(tmp_path)
        pending.wait()
    engine.load_checkpoint(tmp_path)
    assert "the checkpoint could not be written: " in caplog.text

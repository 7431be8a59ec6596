"""Interrupted and killed preparations are continued, and give what an uninterrupted one gives."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines import DATASETS, UserError, prepare
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    EncodedSample,
    OpenedDataset,
    PreparationOptions,
    SampleSource,
)
from data_pipelines.progress import Progress, no_progress


@dataclass(frozen=True)
class SlowSource:
    """The digits, with a pause before each; notes which processes read them."""

    whole: SampleSource
    notes: Path
    pause: float

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        (self.notes / str(os.getpid())).touch()
        for sample in self.whole.read(places):
            time.sleep(self.pause)
            yield sample


@dataclass(frozen=True)
class SlowDigits:
    """Opens the digits in shards of 100, from `SlowSource`."""

    notes: Path
    pause: float

    def __call__(
        self, options: PreparationOptions, scratch: Path, progress: Progress
    ) -> OpenedDataset:
        opened = DATASETS["digits"].open(options, scratch, progress)
        splits = {
            name: replace(
                split,
                samples=SlowSource(split.samples, self.notes, self.pause),
                samples_per_shard=100,
            )
            for name, split in opened.splits.items()
        }
        return replace(opened, splits=splits)


def slow_digits(notes: Path, pause: float) -> DatasetRecipe:
    return DatasetRecipe(name="slow", description="slow digits", open=SlowDigits(notes, pause))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setitem(DATASETS, "slow", slow_digits(folder, 0))
    return folder


def prepare_slowly(out: Path, notes: Path, num_workers: int) -> None:
    DATASETS["slow"] = slow_digits(notes, 0.001)
    prepare("slow", out=out, num_workers=num_workers)


def kill_after_shards(out: Path, notes: Path, *, num_workers: int, num_shards: int) -> None:
    """Kills a preparation outright, as soon as some shards are finished."""
    process = multiprocessing.get_context("spawn").Process(
        target=prepare_slowly, args=(out, notes, num_workers)
    )
    process.start()
    while len(finished_shards(out)) < num_shards:
        assert process.is_alive(), "it ended too soon"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def finished_shards(out: Path) -> dict[str, tuple[int, int]]:
    """Name of each shard with a record, with what changes when it is written again."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    found = {}
    for record in unfinished.glob("shards/*.json"):
        shard = unfinished / "data" / record.stem.split("-")[0] / f"{record.stem}.tar"
        found[shard.name] = (shard.stat().st_ino, shard.stat().st_mtime_ns)
    return found


def shards_of(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.tar")}


def content_of(directory: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def is_running(process_id: int) -> bool:
    with contextlib.suppress(OSError):
        # A process that has ended may still be waiting for its parent to take note.
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_preparation_is_continued(tmp_path: Path, notes: Path, num_workers: int) -> None:
    out = tmp_path / "digits"
    kill_after_shards(out, notes, num_workers=num_workers, num_shards=3)
    assert not out.exists()
    deadline = time.monotonic() + 20
    while any(is_running(int(path.name)) for path in notes.iterdir()):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.01)
    kept = finished_shards(out)
    assert 3 <= len(kept) < 19
    made = prepare("slow", out=out, num_workers=3 - num_workers)
    assert not made.already_there
    assert kept.items() <= shards_of(out).items()
    assert len(shards_of(out)) == 19
    uninterrupted = prepare("slow", out=tmp_path / "other")
    assert content_of(made.directory) == content_of(uninterrupted.directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "notes", "other"]


def test_interrupt_keeps_what_is_finished(tmp_path: Path, notes: Path) -> None:
    def interrupt(what: str, *, done: int, total: int | None, unit: str) -> None:
        if what == "writing" and done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("slow", out=tmp_path / "digits", num_workers=2, progress=interrupt)
    kept = finished_shards(tmp_path / "digits")
    assert kept
    prepare("slow", out=tmp_path / "digits", num_workers=2)
    assert kept.items() <= shards_of(tmp_path / "digits").items()


def test_kept_shard_that_was_changed_is_written_again(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "digits"
    kill_after_shards(out, notes, num_workers=1, num_shards=2)
    shard = tmp_path / ".digits.unfinished/data/train/train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    made = prepare("slow", out=out)
    uninterrupted = prepare("slow", out=tmp_path / "other")
    assert content_of(made.directory) == content_of(uninterrupted.directory)


def test_unfinished_work_with_other_settings_is_refused(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "digits"
    kill_after_shards(out, notes, num_workers=1, num_shards=1)
    with pytest.raises(UserError, match=r"unfinished work with another seed; .*--restart"):
        prepare("slow", out=out, seed=5)
    with pytest.raises(UserError, match=r"unfinished work with another .*data set"):
        prepare("digits", out=out)
    assert finished_shards(out)
    made = prepare("slow", out=out, seed=5, restart=True)
    assert content_of(made.directory) == content_of(
        prepare("slow", out=tmp_path / "other", seed=5).directory
    )


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".digits.lock"),
        pytest.raises(UserError, match=r"digits: is being prepared by another process"),
    ):
        prepare("digits", out=tmp_path / "digits")
    assert prepare("digits", out=tmp_path / "digits").num_samples["val"] == 360


def test_killed_worker_is_one_line_and_nothing_is_lost(tmp_path: Path, notes: Path) -> None:
    def kill_a_worker(what: str, *, done: int, total: int | None, unit: str) -> None:
        if what == "writing" and done:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(next(notes.iterdir()).name), signal.SIGKILL)

    with pytest.raises(UserError, match="a worker process was killed from outside"):
        prepare("slow", out=tmp_path / "digits", num_workers=2, progress=kill_a_worker)
    kept = finished_shards(tmp_path / "digits")
    assert kept
    prepare("slow", out=tmp_path / "digits", num_workers=2, progress=no_progress)
    assert kept.items() <= shards_of(tmp_path / "digits").items()


def test_progress_counts_up_to_all_samples(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []

    def note(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append((what, done, total))

    prepare("digits", out=tmp_path / "digits", progress=note)
    writing = [done for what, done, _ in seen if what == "writing"]
    assert writing == [0, 512, 1024, 1437, 1797]
    assert {total for what, _, total in seen if what == "writing"} == {1797}

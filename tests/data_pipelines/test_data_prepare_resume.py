"""Interrupted and killed preparations are continued, and give what an uninterrupted one gives."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import archives
import filelock
import numpy as np
import pytest
from numpy.typing import NDArray
from shards import array_samples, files_below

from data_pipelines import DATASETS, UserError, prepare
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    EncodedSample,
    OpenedDataset,
    PreparationOptions,
    SampleSource,
)
from data_pipelines.progress import Progress


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
    """Opens the digits in shards of 200, from `SlowSource`."""

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
                samples_per_shard=200,
            )
            for name, split in opened.splits.items()
        }
        return replace(opened, splits=splits)


NUM_SHARDS = 10


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


def stop_after_shards(out: Path, *, num_shards: int) -> None:
    """Ends a preparation in this process, when some shards are finished."""

    def interrupt(what: str, *, done: int, total: int | None, unit: str) -> None:
        if what == "writing" and done >= 200 * num_shards:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("slow", out=out, progress=interrupt)


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


def is_running(process_id: int) -> bool:
    with contextlib.suppress(OSError):
        # A process that has ended may still be waiting for its parent to take note.
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_killed_preparation_is_continued(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "digits"
    kill_after_shards(out, notes, num_workers=2, num_shards=2)
    assert not out.exists()
    deadline = time.monotonic() + 20
    while any(is_running(int(path.name)) for path in notes.iterdir()):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.01)
    kept = finished_shards(out)
    assert 2 <= len(kept) < NUM_SHARDS
    made = prepare("slow", out=out)
    assert not made.already_there
    assert kept.items() <= shards_of(out).items()
    assert len(shards_of(out)) == NUM_SHARDS
    uninterrupted = prepare("slow", out=tmp_path / "other")
    assert files_below(made.directory) == files_below(uninterrupted.directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "notes", "other"]


def test_kept_shard_that_was_changed_is_written_again(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "digits"
    stop_after_shards(out, num_shards=3)
    kept = finished_shards(out)
    assert len(kept) == 3
    shard = tmp_path / ".digits.unfinished/data/train/train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    made = prepare("slow", out=out)
    uninterrupted = prepare("slow", out=tmp_path / "other")
    assert files_below(made.directory) == files_below(uninterrupted.directory)
    now = shards_of(out)
    assert {name for name in kept if now[name] == kept[name]} == set(kept) - {shard.name}


def test_unfinished_work_with_other_settings_is_refused(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "digits"
    stop_after_shards(out, num_shards=1)
    with pytest.raises(UserError, match=r"unfinished work with another seed; .*--restart"):
        prepare("slow", out=out, seed=5)
    with pytest.raises(UserError, match=r"unfinished work with another .*data set"):
        prepare("digits", out=out)
    assert finished_shards(out)
    made = prepare("slow", out=out, seed=5, restart=True)
    other = prepare("slow", out=tmp_path / "other", seed=5)
    assert files_below(made.directory) == files_below(other.directory)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".digits.lock"),
        pytest.raises(UserError, match=r"digits: is being prepared by another process"),
    ):
        prepare("digits", out=tmp_path / "digits")


def test_killed_worker_is_one_line_and_nothing_is_lost(tmp_path: Path, notes: Path) -> None:
    def kill_a_worker(what: str, *, done: int, total: int | None, unit: str) -> None:
        if what == "writing" and done:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(next(notes.iterdir()).name), signal.SIGKILL)

    with pytest.raises(UserError, match="a worker process was killed from outside"):
        prepare("slow", out=tmp_path / "digits", num_workers=2, progress=kill_a_worker)
    kept = finished_shards(tmp_path / "digits")
    assert kept
    prepare("slow", out=tmp_path / "digits")
    assert kept.items() <= shards_of(tmp_path / "digits").items()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_start_that_did_something_leaves_it_for_the_same_input(tmp_path: Path) -> None:
    archives.write_mnist(tmp_path / "in", num_train=10, num_test=10)
    labels = tmp_path / "in/t10k-labels-idx1-ubyte.gz"
    labels.rename(tmp_path / "kept")
    for _ in range(2):
        with pytest.raises(UserError, match=r"holds none of t10k-labels"):
            prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "in", "kept"]
    (tmp_path / "kept").rename(labels)
    # Images that are others by now are read anew.
    images = archives.mnist_arrays(10, 7)[0]
    (tmp_path / "in/train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "in/train-images-idx3-ubyte").write_bytes(archives.idx_bytes(images))
    made = prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
    found = {image.tobytes() for image, _ in array_samples(made, "train")}
    assert found == {image.tobytes() for image in images}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_plan_of_which_nothing_was_done_binds_nobody(tmp_path: Path) -> None:
    work = tmp_path / ".digits.unfinished"
    (work / "data/train").mkdir(parents=True)
    (work / "data/train/train-000099.tar").write_bytes(b"written, but killed before its record")
    (work / "plan.json").write_text('{"seed": 7}')
    made = prepare("digits", out=tmp_path / "digits")
    assert len(list(made.directory.rglob("*.tar"))) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]

"""Loader processes: one that is killed is named, and they stay only as long as who loads."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from shards import make_photos

from data_pipelines import MicroBatchLoader, SampleIndex, UserError, transform_preset


def endless_loader(index: SampleIndex) -> MicroBatchLoader:
    """Mini-batches of 8 samples from two loader processes, for as long as anybody asks."""
    return MicroBatchLoader(
        index,
        order="global",
        seed=0,
        batch_size=8,
        positions=[range(8)],
        transform=transform_preset("none"),
        num_workers=2,
        first_step=0,
        num_steps=10**6,
    )


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    loader = endless_loader(make_photos(tmp_path / "photos", 16))
    others = {child.pid for child in multiprocessing.active_children()}
    batches = iter(loader)
    next(batches)
    workers = {child.pid for child in multiprocessing.active_children()} - others
    assert len(workers) == 2

    def signal_all(number: signal.Signals) -> None:
        for worker in workers:
            assert worker is not None
            os.kill(worker, number)

    # They stop loading, so that the next batch is surely being waited for when they are killed.
    signal_all(signal.SIGSTOP)
    killing = threading.Timer(0.3, signal_all, [signal.SIGKILL])
    killing.start()
    with pytest.raises(UserError, match=r"lost a loader process \(pid \d.*fewer data.workers"):
        for _ in batches:
            pass
    killing.join()


def test_loaders_start_as_they_do_whatever_the_default_is(tmp_path: Path) -> None:
    loader = endless_loader(make_photos(tmp_path / "photos", 16))
    others = set(multiprocessing.active_children())
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        next(batches := iter(loader))
        loaders = set(multiprocessing.active_children()) - others
    finally:
        multiprocessing.set_start_method(before, force=True)
    kind = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Process
    assert [isinstance(each, kind) for each in loaders] == [True, True]
    batches.close()


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_loaders_outlive_signals_to_all_but_not_their_parent(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 16)
    with subprocess.Popen(
        [sys.executable, __file__, tmp_path / "photos"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            for worker in workers:
                os.kill(worker.pid, number)
        for _ in range(50):
            assert parent.stdout.readline()
        assert all(map(_is_there, workers))
        parent.kill()
    end = time.monotonic() + 60
    while any(map(_is_there, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


if __name__ == "__main__":
    for _ in endless_loader(SampleIndex.open(sys.argv[1])):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)

"""A loader process that is killed from outside, as by the kernel when memory runs out."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from endless_loading import endless_loader
from shards import make_photos

from data_pipelines import UserError


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
    with pytest.raises(UserError, match=r"a loader process was killed .*\(pid.*fewer workers"):
        for _ in batches:
            pass
    killing.join()

"""Loader processes stay as long as the process that loads, and no longer."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from endless_loading import endless_loader
from shards import make_photos

from data_pipelines import SampleIndex


def _load_for_ever(index: SampleIndex, connection: Connection) -> None:
    for _ in endless_loader(index):
        connection.send(1)


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_loaders_outlive_signals_to_all_but_not_their_parent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    index = make_photos(tmp_path / "photos", 16)
    parent = context.Process(target=_load_for_ever, args=(index, there))
    parent.start()
    here.recv()
    assert parent.pid is not None
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker.pid, number)
    for _ in range(50):
        here.recv()
    assert all(map(_is_there, workers))
    parent.kill()
    parent.join()
    end = time.monotonic() + 60
    while any(map(_is_there, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)

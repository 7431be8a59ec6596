"""What ranks know of each other, and what a rank that hangs says before it ends."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from warm_processes import ended, say_into, start_warm

from data_pipelines.errors import UserError
from msam_scale.config.sections.faults import FaultsSection
from msam_scale.supervision import heartbeats as heartbeats_module
from msam_scale.supervision.heartbeats import Heartbeat, Heartbeats
from msam_scale.supervision.lost_rank import lost_rank
from msam_scale.supervision.own_frames import place_of_main_thread
from msam_scale.supervision.supervision import Supervision
from msam_scale.supervision.watchdog import Watchdog, record_collectives

_INTERVAL = 0.05
Marks = dict[int, tuple[int, str]]


def _store(port: int = 0) -> dist.TCPStore:
    """A server of its own, or a connection to the one at a port."""
    return dist.TCPStore("127.0.0.1", port, is_master=not port, wait_for_workers=False)


def _beating(store: dist.Store, marks: Marks, *, size: int) -> dict[int, Heartbeats]:
    """The heartbeats of some ranks."""

    def of(rank: int) -> Heartbeats:
        return Heartbeats(store, rank=rank, size=size, now=lambda: marks[rank], interval=_INTERVAL)

    beating = {rank: of(rank) for rank in marks}
    for one in beating.values():
        one.start()
    return beating


@pytest.fixture
def store() -> dist.TCPStore:
    """The server of a store at a free port."""
    return _store()


def test_a_rank_that_no_longer_beats_is_silent(store: dist.TCPStore) -> None:
    marks: Marks = {0: (3, "step"), 1: (3, "loading data"), 2: (2, "saving")}
    beating = _beating(store, marks, size=4)
    try:
        end = time.monotonic() + 60
        while set(beating[0].read() or ()) != {0, 1, 2}:
            assert time.monotonic() < end
            time.sleep(_INTERVAL)
        beating[2].close()
        marks[0] = (4, "step")
        found = beating[0].survey()
        assert found is not None
        beats, silent = found
        assert silent == [2, 3], "one has stopped, one was never there; one waits and beats"
        assert (beats[0].step, beats[0].phase) == (4, "step")
        assert (beats[2].step, beats[2].phase) == (2, "saving")
        said = lost_rank(_LOST, heartbeats=beating[0], step=7)
        assert said is not None
        assert said.startswith("another rank is gone (ranks 2, 3): lost the connection")
    finally:
        for one in beating.values():
            one.close()


def _asks_a_store_that_is_gone(log: str) -> None:
    say_into(log)
    heartbeats_module._SECONDS_TO_READ = 0.3
    server = _store()
    client = _store(server.port)
    heartbeats = Heartbeats(client, rank=1, size=2, now=lambda: (0, "step"), interval=_INTERVAL)
    del server
    assert heartbeats.survey() is None
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    print(lost_rank(RuntimeError("Timed out waiting 5000ms"), heartbeats=heartbeats, step=7))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    print(lost_rank(RuntimeError("Broken pipe"), heartbeats=heartbeats, step=7), flush=True)
    os._exit(0)


def test_a_store_that_is_gone_says_nothing(tmp_path: Path) -> None:
    # In a process of its own: threads that look for the server go on for minutes.
    log = tmp_path / "log"
    assert ended(_asks_a_store_that_is_gone, str(log)) == 0, log.read_text()
    by_the_first_rank, by_the_launcher = (
        line for line in log.read_text().splitlines() if "another rank is gone" in line
    )
    assert by_the_first_rank.startswith("another rank is gone (probably rank 0: the ranks' store")
    assert "no answer from it while in" in by_the_first_rank
    assert "(which one is not known)" in by_the_launcher


def test_behind_is_an_earlier_step_or_an_earlier_phase_of_it() -> None:
    beat = Heartbeat(number=1, step=5, phase="step")
    assert beat.is_behind(6, "starting")
    assert beat.is_behind(5, "evaluation")
    assert not beat.is_behind(5, "step")
    assert not beat.is_behind(5, "loading data")
    assert not beat.is_behind(4, "saving")
    assert Heartbeat(number=1, step=5, phase="of a later version").is_behind(5, "loading data")


_LOST = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4711")


def test_only_a_lost_connection_is_a_lost_rank() -> None:
    said = lost_rank(_LOST, heartbeats=None, step=7)
    assert said is not None
    assert said.startswith("another rank is gone (which one is not known): lost the connection")
    assert "in step 7" in said
    assert lost_rank(RuntimeError("out of memory"), heartbeats=None, step=7) is None
    assert lost_rank(UserError("Connection reset by peer"), heartbeats=None, step=7) is None


def _hangs(log: str, port: int) -> None:
    """As rank 0 of three, in step 3, of which rank 1 is ahead and rank 2 was never there."""
    say_into(log)
    watchdog = Watchdog(timeout=0.3, rank=0)
    store = _store(port)
    marks: Marks = {0: (3, "evaluation"), 1: (4, "step")}
    watchdog.heartbeats = _beating(store, marks, size=3)[0]
    watchdog.beat(phase="evaluation", step=3)
    watchdog.start()
    for _ in range(4):  # longer than the timeout in all
        time.sleep(0.15)
        watchdog.beat(phase="evaluation")
    os.write(2, b"waits\n")
    time.sleep(300)


def test_a_process_without_a_beat_says_where_it_hangs_and_ends(
    tmp_path: Path, store: dist.TCPStore
) -> None:
    log = tmp_path / "log"
    assert ended(_hangs, str(log), store.port) == 1
    said = log.read_text()
    assert said.startswith("waits\n"), "beats keep it going"
    assert "in _hangs" in said, "the stack of every thread"
    assert said.endswith(
        "msam-scale, rank 0: no progress for 0.3 s in evaluation of step 3; waiting in code "
        "outside of msam_scale; ranks that have not come as far: rank 2 (never heard of)\n"
    )


def _hangs_in_a_collective(folder: str) -> None:
    say_into(f"{folder}/log")
    os.environ.update(HOME=folder, MASTER_PORT="4711")
    record_collectives(rank=3)
    # As torch's monitor of NCCL does: it makes a pipe, and dumps when something comes.
    stem = Path(os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"])
    pipe = Path(f"{stem}3.pipe")
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    Watchdog(timeout=0.2, rank=3).start()
    select.select([reading], [], [], 60)
    assert os.read(reading, 1)
    Path(f"{os.environ['TORCH_FR_DUMP_TEMP_FILE']}3").write_bytes(b"collectives")
    time.sleep(300)


def test_torchs_flight_recorder_is_asked_for_the_last_collectives(tmp_path: Path) -> None:
    assert ended(_hangs_in_a_collective, str(tmp_path)) == 1
    dump = tmp_path / ".cache/msam_scale/collectives-4711-rank-3"
    said = (tmp_path / "log").read_text()
    assert f"flight recorder of the last collectives is in {dump} (" in said
    assert list(dump.parent.iterdir()) == [dump], "no pipe is left"


def _beats_before_and_after_a_break(log: str) -> None:
    say_into(log)
    watchdog = Watchdog(timeout=1.0, rank=0)
    watchdog.start()
    watchdog.beat(phase="step", step=1)
    time.sleep(0.3)  # the watchdog has seen the beat by then
    os.write(2, b"beats\n")
    for _ in range(3):  # the time that it is stopped ends only one of them
        time.sleep(0.15)
    watchdog.beat(phase="step", step=2)
    time.sleep(0.2)
    os._exit(0)


def test_the_time_of_a_stopped_process_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    process = start_warm(_beats_before_and_after_a_break, str(log))
    assert process.pid is not None
    while not log.read_text():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0, log.read_text()


def test_groups_give_up_after_the_watchdog() -> None:
    """It knows more than a collective that gives up."""
    assert Supervision(FaultsSection(timeout=30.0), code=75).timeout == timedelta(seconds=90)
    assert Supervision(FaultsSection(timeout=None), code=75).timeout == timedelta(days=20)


def test_a_place_is_the_innermost_function_of_this_project() -> None:
    def loader() -> Iterator[int]:
        thread = threading.Thread(target=lambda: places.append(place_of_main_thread()))
        thread.start()
        thread.join()
        yield 1

    places: list[str] = []
    supervision = Supervision(FaultsSection(), code=75)
    assert list(supervision.loading(loader())) == [1]
    assert places[0].startswith("loading (msam_scale/supervision/supervision.py:")
    supervision.close()

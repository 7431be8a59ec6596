"""The request itself: all ranks agree on it, a second one and the limit of time end the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from rank_pool import OnRanks
from warm_processes import ended, start_warm

from msam_scale.ranks import Ranks
from msam_scale.supervision.launcher import LauncherWatch, is_deepspeed
from msam_scale.supervision.stop_request import StopRequest

_CPU = torch.device("cpu")


def _request(*, grace: float = 60.0, size: int = 1) -> StopRequest:
    stop = StopRequest(grace=grace, code=75)
    rank = dist.get_rank() if size > 1 else 0
    stop.join(Ranks(rank=rank, size=size, device=_CPU), timeout=timedelta(seconds=60))
    return stop


def _polls(asked_at: int, asked: tuple[int, ...]) -> tuple[list[bool], str]:
    stop = _request(size=2)
    answers = []
    for turn in range(6):
        if turn == asked_at and dist.get_rank() in asked:
            stop.request(signal.SIGUSR1)
        answers.append(stop.poll())
        if answers[-1]:
            break
    stop.finish()
    stop.leave()
    stop.close()
    return answers, stop.reason if stop.poll() else ""


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_ranks_agree_one_turn_later(on_ranks: OnRanks, asked: tuple[int, ...]) -> None:
    found = on_ranks(2, _polls, 2, asked)
    assert found == [([False, False, False, True], "SIGUSR1")] * 2


def test_without_a_request_nobody_stops(on_ranks: OnRanks) -> None:
    assert on_ranks(2, _polls, 9, (0,)) == [([False] * 6, "")] * 2


def _agreed_at_once() -> bool:
    stop = _request(size=2)
    if dist.get_rank() == 1:
        stop.launcher_is_gone()
    answer = stop.agree()
    stop.close()
    return answer


def test_an_answer_can_be_waited_for(on_ranks: OnRanks) -> None:
    assert on_ranks(2, _agreed_at_once) == [True, True]


def _signalled_twice(pause: float) -> None:
    stop = _request()
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(pause)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    assert stop.poll()
    assert stop.reason == "SIGTERM"
    stop.finish()
    os.kill(os.getpid(), signal.SIGTERM)  # too late to matter
    stop.close()
    os._exit(75)


def _waits_for_ever() -> None:
    stop = _request(grace=0.3)
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def _before_the_ranks_have_joined(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    StopRequest(grace=60.0, code=75).listen()
    os.kill(os.getpid(), number)
    time.sleep(60)


def _once_they_have(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    stop = _request()
    stop.listen()
    os.kill(os.getpid(), number)
    while not stop.poll():
        time.sleep(0.01)
    os._exit(75 if stop.reason == number.name else 1)


@pytest.mark.parametrize(
    ("function", "arguments", "code"),
    [
        (_signalled_twice, (0.1,), 75),  # launchers send a signal several times
        (_signalled_twice, (2.2,), 128 + signal.SIGINT),
        (_waits_for_ever, (), 128 + signal.SIGTERM),
        (_before_the_ranks_have_joined, (signal.SIGTERM,), 75),
        (_before_the_ranks_have_joined, (signal.SIGHUP,), 75),  # a terminal that closes
        (_once_they_have, (signal.SIGHUP,), 75),
    ],
)
def test_how_a_signalled_process_ends(
    function: Callable[..., None], arguments: tuple[Any, ...], code: int
) -> None:
    assert ended(function, *arguments) == code


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    stop = StopRequest(grace=1.0, code=75)
    stop.listen()
    assert signal.getsignal(signal.SIGTERM) is not before[0]
    stop.close()
    after = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert after == before
    assert signal.set_wakeup_fd(-1) == -1


def test_only_a_launcher_is_watched() -> None:
    by_hand = LauncherWatch(environment={})
    assert by_hand.launchers == []
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    watch = LauncherWatch(environment=environment)
    assert len(watch.launchers) <= 1, "of the parents only one that is no shell"
    assert is_deepspeed([sys.executable, "/usr/bin/deepspeed", "train.py"])
    assert is_deepspeed([sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"])
    assert not is_deepspeed(["bash", "run_deepspeed.sh"])
    assert not is_deepspeed([sys.executable, "train.py", "--with", "deepspeed"])


@pytest.mark.parametrize(("of_parent", "said"), [({}, "gone"), ({"RANK": "0"}, "")])
def test_a_rank_that_comes_too_late_to_see_its_launcher_notices_it(
    of_parent: dict[str, str], said: str
) -> None:
    """Its parent then is whoever takes over orphans: no launcher, which has torch."""
    program = (
        "import time; from msam_scale.supervision.launcher import LauncherWatch; "
        "watch = LauncherWatch(); watch.start(lambda: print('gone')); time.sleep(0.1)"
    )
    of_torchrun = "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 TORCHELASTIC_RUN_ID=x"
    done = subprocess.run(
        ["sh", "-c", f'{of_torchrun} "$0" -c "$1"; true', sys.executable, program],
        env=os.environ | of_parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (said, "")


def _rank_of_a_launcher(folder: str) -> None:
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    watch = LauncherWatch()
    watch.start(lambda: Path(folder, "noticed").touch())
    Path(folder, "rank").write_text(str(os.getpid()))
    while not Path(folder, "noticed").exists():
        time.sleep(0.05)


def _launcher(folder: str) -> None:
    child = os.fork()
    if not child:
        _rank_of_a_launcher(folder)
        os._exit(0)
    os.waitpid(child, 0)


def test_a_rank_notices_that_its_launcher_is_killed(tmp_path: Path) -> None:
    process = start_warm(_launcher, str(tmp_path))
    written = tmp_path / "rank"
    end = time.monotonic() + 60
    while not (written.exists() and written.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    rank = psutil.Process(int(written.read_text()))
    assert not (tmp_path / "noticed").exists()
    process.kill()
    rank.wait(60)
    assert (tmp_path / "noticed").exists()

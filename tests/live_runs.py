"""Real runs of several processes, which tests then disturb: under launchers, and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from ports import free_port
from saved_state import checkpoint_weights
from warm_processes import say_into, start_warm

ROOT = Path(__file__).parents[1]
_BIN = Path(sys.executable).parent
LAUNCHERS: dict[str, list[str]] = {
    "msam-scale": [sys.executable, "-m", "launch.cli", "train", "--nproc", "2"],
    "torchrun": [
        *(str(_BIN / "torchrun"), "--nproc-per-node", "2", "--max-restarts", "{restarts}"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        str(ROOT / "launch/train.py"),
    ],
    "deepspeed": [
        *(str(_BIN / "deepspeed"), "--log_level", "error", "--num_accelerators", "2"),
        "--master_port={port}",
        str(ROOT / "launch/train.py"),
    ],
}
_MARKER = "MSAM_SCALE_TEST_RUN"
_SECONDS = 300.0


class Watched(ABC):
    """What a test waits for; a subclass says whether the run is over."""

    log: Path

    @abstractmethod
    def is_over(self) -> bool:
        """Whether the process that decides about the run has ended."""

    def text(self) -> str:
        """What it has said."""
        return self.log.read_text("utf-8", errors="replace")

    def wait_for_steps(self, name: str, *, step: int) -> None:
        """Until the run has reported a step."""
        path = Path("runs", name, "metrics.jsonl")
        self.wait(lambda: path.exists() and any(s >= step for s in steps(name)), f"step {step}")

    def wait_for_text(self, text: str) -> None:
        """Until the run has said so."""
        self.wait(lambda: text in self.text(), text)

    def wait(self, holds: Callable[[], bool], what: str, *, needs_run: bool = True) -> None:
        """Until something holds."""
        end = time.monotonic() + _SECONDS
        while not holds():
            is_over = needs_run and self.is_over() and not holds()
            assert not is_over, f"ended before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"waited too long for {what}:\n{self.text()}"
            time.sleep(0.02)


class LiveRun(Watched):
    """A run under a launcher; every process of it bears a mark in its environment."""

    def __init__(self, launcher: str, config: str, *words: str, restarts: int = 0) -> None:
        self._mark = uuid.uuid4().hex
        self.log = Path(f"{launcher}-{self._mark[:8]}.log")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",  # as the ranks of the pools
            _MARKER: self._mark,
        }
        numbers = {"{port}": free_port(), "{restarts}": restarts}
        command = LAUNCHERS[launcher]
        for name, number in numbers.items():
            command = [word.replace(name, str(number)) for word in command]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, config, *words],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Whether the launcher has ended."""
        return self.process.poll() is not None

    def processes(self) -> list[psutil.Process]:
        """All that are there, the launcher's as well."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(_MARKER) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank, not one of its loaders or launchers."""
        for process in self.processes():
            parent = process.parent()
            of_rank = process.environ().get("RANK") == str(number)
            if of_rank and parent is not None and "RANK" not in parent.environ():
                return process
        raise AssertionError(f"rank {number} is not there:\n{self.text()}")

    def code(self) -> int:
        """Waits for the launcher's end."""
        return self.process.wait(_SECONDS)

    def wait_until_nothing_is_left(self) -> None:
        """Until all its processes are gone."""
        self.wait(lambda: not self.processes(), "the end of all processes", needs_run=False)

    def close(self) -> None:
        """Ends what is left."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()


class LiveRanks(Watched):
    """The two ranks of a run as a launcher would start them, forked from a warm process.

    Args:
        words: the config and its overrides.
        before: called in each rank before it starts to train; of a module.
    """

    def __init__(self, *words: str, before: Callable[[], None] | None = None) -> None:
        self.log = Path(f"ranks-{uuid.uuid4().hex[:8]}.log")
        self.log.touch()
        arguments = (free_port(), [*words], str(self.log.absolute()), before)
        self.processes = [start_warm(_serve_as_rank, rank, *arguments) for rank in range(2)]

    def is_over(self) -> bool:
        """Whether both have ended."""
        return not any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals, *, rank: int) -> None:
        """Signals a rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def codes(self) -> list[int | None]:
        """Waits for the end of both."""
        for process in self.processes:
            process.join(_SECONDS)
        return [process.exitcode for process in self.processes]

    def close(self) -> None:
        """Ends what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def _serve_as_rank(
    rank: int, port: int, words: Sequence[str], log: str, before: Callable[[], None] | None
) -> None:
    say_into(log)
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    from launch.train import _end, main

    if before is not None:
        before()
    _end(main(words))


def metric_lines(name: str) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics."""
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def figures(name: str, *names: str) -> list[list[Any]]:
    """Of each line of a run's metrics the figures of these names that it has."""
    return [[line[one] for one in names if one in line] for line in metric_lines(name)]


def steps(name: str) -> list[int]:
    """The steps that a run has reported of training."""
    return [line["step"] for line in metric_lines(name) if line["split"] == "train"]


def saved_step(name: str) -> int:
    """The step of the newest checkpoint."""
    latest = Path("runs", name, "checkpoints", "latest").read_text().strip()
    return int(latest.removeprefix("step-"))


def weights(name: str) -> dict[str, Any]:
    """Those of the newest checkpoint."""
    folder = Path("runs", name, "checkpoints")
    return checkpoint_weights(folder / (folder / "latest").read_text().strip())

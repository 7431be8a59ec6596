"""Real runs under real launchers, which the tests then disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ports import free_port
from saved_state import checkpoint_weights

ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
LAUNCHERS: dict[str, list[str]] = {
    "msam-scale": [sys.executable, "-m", "launch.cli", "train", "--nproc", "2"],
    "torchrun": [
        *(str(_BIN / "torchrun"), "--nproc-per-node", "2", "--max-restarts", "1"),
        *(
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
            str(ROOT / "launch/train.py"),
        ),
    ],
    "deepspeed": [
        *(str(_BIN / "deepspeed"), "--log_level", "error", "--num_accelerators", "2"),
        "--master_port=PORT",
        str(ROOT / "launch/train.py"),
    ],
}
# In float64, so that what a stop and a resume change shows; in small chunks, which take longer.
SETTINGS = (
    "precision=float64",
    "training.steps=16",
    "monitor.every=1",
    "monitor.tensorboard=false",
)
_SLOWLY = ("batch.chunk=4",)
_MARKER = "MSAM_SCALE_TEST_RUN"
_SECONDS = 300.0


class LiveRun:
    """A run under a launcher; every process of it bears a mark in its environment."""

    def __init__(self, launcher: str, config: str, *words: str) -> None:
        self._mark = uuid.uuid4().hex
        self.log = Path(f"{launcher}-{self._mark[:8]}.log")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            _MARKER: self._mark,
        }
        command = [word.replace("PORT", str(free_port())) for word in LAUNCHERS[launcher]]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, config, *SETTINGS, *_SLOWLY, *words],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All that are there, the launcher's as well."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARKER) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank, not one of its loaders or launchers."""
        for process in self.processes():
            parent = process.parent()
            of_rank = process.environ().get("RANK") == str(number)
            if of_rank and parent is not None and "RANK" not in parent.environ():
                return process
        raise AssertionError(f"rank {number} is not there:\n{self.text()}")

    def text(self) -> str:
        """What it has said."""
        return self.log.read_text("utf-8", errors="replace")

    def wait_for_steps(self, name: str, *, step: int) -> None:
        """Until the run has reported a step."""
        path = Path("runs", name, "metrics.jsonl")
        self._wait(lambda: path.exists() and any(s >= step for s in steps(name)), f"step {step}")

    def wait_for_text(self, text: str) -> None:
        """Until the run has said so."""
        self._wait(lambda: text in self.text(), text)

    def code(self) -> int:
        """Waits for the launcher's end."""
        return self.process.wait(_SECONDS)

    def wait_until_nothing_is_left(self) -> None:
        """Until all its processes are gone."""
        self._wait(lambda: not self.processes(), "the end of all processes", needs_launcher=False)

    def close(self) -> None:
        """Ends what is left."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()

    def _wait(self, holds: Callable[[], bool], what: str, *, needs_launcher: bool = True) -> None:
        end = time.monotonic() + _SECONDS
        while not holds():
            is_over = needs_launcher and self.process.poll() is not None and not holds()
            assert not is_over, f"ended before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"waited too long for {what}:\n{self.text()}"
            time.sleep(0.05)


def metric_lines(name: str) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics."""
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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

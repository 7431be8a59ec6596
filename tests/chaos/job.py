"""A training job on two ranks under a launcher, which is killed and started again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from msam_scale.checkpoint import faults_of, read_weights, step_folders, step_of
from tests.ports import free_port

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
_CONFIG = """
run: {name: NAME}
model: {source: msam_scale, name: wrn-10-1}
data: {train: digits/train, val: digits/val}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 64, norm_samples: 8}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
training: {steps: STEPS, eval_every: 3}
checkpoint: {every: 1, keep: 2}
monitor: {every: 1, tensorboard: false}
"""
_TRAIN = str(_ROOT / "launch/train.py")
_LAUNCHERS = {
    "torchrun": [str(_BIN / "torchrun"), "--standalone", "--nproc-per-node=2", _TRAIN],
    "msam-scale": [sys.executable, "-m", "launch.cli", "train", "--nproc", "2"],
    "deepspeed": [
        *(str(_BIN / "deepspeed"), "--log_level", "error", "--num_accelerators", "2"),
        *("--master_port={port}", _TRAIN),
    ],
}
_SECONDS = 120.0


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when.

    Attributes:
        stage: of a rank's way through a start, `start` for a moment up to the first step, or
            `random` for one after it.
        who: rank, all or launcher.
        after: seconds after the launcher's start, or after the first step.
    """

    stage: str
    who: str
    after: float = 0.0

    @property
    def is_timed(self) -> bool:
        """Whether a moment is chosen, and no stage of the code."""
        return self.stage in ("start", "random")


@dataclass(frozen=True)
class Setting:
    """What a job runs under.

    Attributes:
        launcher: one of three.
        words: settings besides.
    """

    launcher: str
    words: tuple[str, ...]


class Job:
    """A training job in a folder that has `digits/`.

    Args:
        home: the folder.
        name: of the run.
        num_steps: optimizer steps.
        setting: what it runs under.
    """

    def __init__(
        self, home: Path, *, name: str, num_steps: int, setting: Setting | None = None
    ) -> None:
        self.home, self.name = home, name
        self.config = home / f"{name}.yaml"
        self.config.write_text(_CONFIG.replace("NAME", name).replace("STEPS", str(num_steps)))
        self.log = home / f"{name}.log"
        self._setting = setting or Setting("torchrun", ())
        self._marker = f"CHAOS_{uuid.uuid4().hex}"

    @property
    def checkpoints(self) -> Path:
        """Of the run."""
        return self.home / "runs" / self.name / "checkpoints"

    def start(self, kill: Kill | None = None) -> subprocess.Popen[bytes]:
        """Starts the job, or goes on with it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", self._marker: "1"}
        armed = _ROOT / "tests/chaos/armed"
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), str(armed)])
        environment["PATH"] = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
        if kill is not None and not kill.is_timed:
            number = 1 if kill.stage == "end" else 2
            environment["KILL"] = f"{kill.stage}:{kill.who}:{number}"
        command = [
            word.replace("{port}", str(free_port())) for word in _LAUNCHERS[self._setting.launcher]
        ]
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [*command, str(self.config), *self._setting.words],
                cwd=self.home,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, launcher: subprocess.Popen[bytes], kill: Kill) -> None:
        """Kills at a moment; where no rank is there yet, the launcher."""
        start = time.monotonic()
        while not re.search(r"^\S+  step \d+/", self.text(), flags=re.MULTILINE):
            waited = time.monotonic() - start
            if kill.stage == "start" and waited > kill.after:
                break
            assert launcher.poll() is None, self.text()
            assert waited < _SECONDS, self.text()
            time.sleep(0.01)
        if kill.stage == "random":
            time.sleep(kill.after)
        ranks = [one for one in self.processes() if _is_rank(one)]
        victims = {"rank": ranks[:1], "all": ranks}.get(kill.who) or [psutil.Process(launcher.pid)]
        for victim in victims:
            if victim.is_running():
                victim.kill()

    def processes(self) -> list[psutil.Process]:
        """All that are alive and belong to the job."""
        return [one for one in psutil.process_iter() if self._is_ours(one)]

    def wait_until_gone(self) -> float:
        """Waits for every process of the job.

        Returns:
            How many seconds that took.

        Raises:
            AssertionError: some do not end.
        """
        start = time.monotonic()
        while left := self.processes():
            assert time.monotonic() < start + _SECONDS, [one.cmdline() for one in left]
            time.sleep(0.1)
        return time.monotonic() - start

    def check(self) -> int:
        """Looks at what is on disk.

        Returns:
            The newest checkpoint's step, 0 without one.

        Raises:
            AssertionError: a checkpoint is damaged.
        """
        folders = step_folders(self.checkpoints)
        faults = [fault for folder in folders for fault in faults_of(folder)]
        assert not faults, faults
        return step_of(folders[-1]) if folders else 0

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the newest checkpoint."""
        return dict(read_weights(step_folders(self.checkpoints)[-1]))

    def text(self) -> str:
        """What the last start has said."""
        return self.log.read_text("utf-8", errors="replace")

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return self._marker in process.environ() and process.status() != "zombie"
        except psutil.Error:
            return False


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(word == _TRAIN for word in process.cmdline()) and "RANK" in process.environ()
    except psutil.Error:
        return False


def kill_and_look(job: Job, kill: Kill) -> tuple[int, float]:
    """Starts the job, has it killed, and looks at what is left.

    Returns:
        The newest step, and the seconds until nothing was left.

    Raises:
        AssertionError: it has not gone on from its newest checkpoint, was not killed as it should
            be, left a process behind, or has a damaged checkpoint.
    """
    before = job.check()
    launcher = job.start(kill)
    if kill.is_timed:
        job.kill(launcher, kill)
    launcher.wait()
    seconds = job.wait_until_gone()
    said = job.text()
    reached = kill.stage != "start" or "resumed after" in said
    assert not before or not reached or f"resumed after step {before} of" in said, said
    assert kill.is_timed or "KILLED" in said, said
    # DeepSpeed's runner ends with 0 where its own launch.py is killed.
    assert launcher.returncode != 0 or kill.who == "launcher", said
    after = job.check()
    assert after >= before, f"step {before} is lost:\n{said}"
    return after, seconds


def finish(job: Job) -> None:
    """Lets the job run to its end.

    Raises:
        AssertionError: it fails.
    """
    launcher = job.start()
    launcher.wait()
    assert launcher.returncode == 0, job.text()
    job.wait_until_gone()
    job.check()


def assert_same_weights(one: Job, other: Job) -> None:
    """Bit for bit."""
    first, second = one.weights(), other.weights()
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different

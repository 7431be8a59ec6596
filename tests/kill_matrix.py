"""Kills a real training job with SIGKILL, again and again, and looks whether anything is lost.

    python tests/kill_matrix.py --kills 100

One job on two ranks is started by torchrun, killed (a rank, all ranks, or the launcher; at every
stage of a save in turn, and at random moments), and started again, until it has been killed so many
times; then it may finish. After each kill every checkpoint has to be intact, and no process may be
left; in the end the weights have to be those of a job that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from killed_rank import STAGES

from data_pipelines import prepare
from msam_scale.checkpoint import faults_of, read_weights, step_folders, step_of

HERE = Path(__file__).resolve().parent
_CONFIG = """
run: {name: NAME}
model: {source: msam_scale, name: wrn-10-1}
data: {train: digits/train}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 64, norm_samples: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
training: {steps: STEPS}
checkpoint: {every: 1, keep: 2}
monitor: {every: 1, tensorboard: false}
"""
_SECONDS_TO_START = _SECONDS_TO_END = 120.0


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when.

    Attributes:
        stage: of the second save after a start, or None for a random moment.
        who: rank, all or launcher.
    """

    stage: str | None
    who: str

    def __str__(self) -> str:
        return f"{self.who}, {self.stage or 'at a random moment'}"


def matrix(*, seed: int) -> Iterator[Kill]:
    """Every stage with every victim, and as many random moments, over and over."""
    chance = random.Random(seed)
    while True:
        for stage, who in itertools.product(STAGES, ("rank", "all", "launcher")):
            yield Kill(stage, who)
            yield Kill(None, chance.choice(("rank", "all", "launcher")))


class Job:
    """A training job in a folder that has `digits/`.

    Args:
        home: the folder.
        name: of the run.
        num_steps: optimizer steps.
    """

    def __init__(self, home: Path, *, name: str, num_steps: int) -> None:
        self.home, self.name = home, name
        self.config = home / f"{name}.yaml"
        self.config.write_text(_CONFIG.replace("NAME", name).replace("STEPS", str(num_steps)))
        self.log = home / f"{name}.log"
        self._marker = f"KILL_MATRIX_{uuid.uuid4().hex}"

    @property
    def checkpoints(self) -> Path:
        """Of the run."""
        return self.home / "runs" / self.name / "checkpoints"

    def start(
        self, kill: Kill | None = None, *, asynchronous: bool = False
    ) -> subprocess.Popen[bytes]:
        """Starts the job, or goes on with it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", self._marker: "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
        if kill is not None and kill.stage is not None:
            environment["KILL"] = f"{kill.stage}:{kill.who}:2"
        words = [str(HERE / "killed_rank.py"), str(self.config)]
        words.append(f"checkpoint.async={str(asynchronous).lower()}")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [*torchrun, "--nproc-per-node=2", *words],
                cwd=self.home,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )

    def kill_at_random(self, launcher: subprocess.Popen[bytes], who: str, *, after: float) -> None:
        """Kills some time after the first step is reported."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while not re.search(r"^step \d+/", self.log.read_text(), flags=re.MULTILINE):
            assert launcher.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        time.sleep(after)
        ranks = [one for one in self.processes() if one.pid != launcher.pid]
        victims = {"rank": ranks[:1], "all": ranks, "launcher": [psutil.Process(launcher.pid)]}
        assert victims[who], "nobody is there"
        for victim in victims[who]:
            victim.kill()

    def processes(self) -> list[psutil.Process]:
        """All that are alive and belong to the job."""
        return [one for one in psutil.process_iter() if self._is_ours(one)]

    def wait_until_gone(self) -> None:
        """Waits for every process of the job.

        Raises:
            AssertionError: some do not end.
        """
        deadline = time.monotonic() + _SECONDS_TO_END
        while left := self.processes():
            assert time.monotonic() < deadline, f"left over: {[one.cmdline() for one in left]}"
            time.sleep(0.1)

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

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return self._marker in process.environ() and process.status() != "zombie"
        except psutil.Error:
            return False


def kill_and_look(job: Job, kill: Kill, *, asynchronous: bool, after: float) -> int:
    """Starts the job, has it killed, and looks at what is left; returns the newest step.

    Raises:
        AssertionError: it has not gone on from its newest checkpoint, was not killed as it should
            be, left a process behind, or has a damaged checkpoint.
    """
    before = job.check()
    launcher = job.start(kill, asynchronous=asynchronous)
    if kill.stage is None:
        job.kill_at_random(launcher, kill.who, after=after)
    launcher.wait()
    job.wait_until_gone()
    said = job.log.read_text()
    assert not before or f"resumed after step {before} of" in said, said
    assert kill.stage is None or "KILLED" in said, said
    assert launcher.returncode != 0, said
    return job.check()


def finish(job: Job) -> None:
    """Lets the job run to its end.

    Raises:
        AssertionError: it fails.
    """
    launcher = job.start()
    launcher.wait()
    assert launcher.returncode == 0, job.log.read_text()
    job.wait_until_gone()
    job.check()


def assert_same_weights(one: Job, other: Job) -> None:
    """Bit for bit."""
    first, second = one.weights(), other.weights()
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def main() -> None:
    """Runs the matrix and prints the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare("digits", out=home / "digits")
        num_steps = 5 * arguments.kills
        whole, killed = (Job(home, name=name, num_steps=num_steps) for name in ("whole", "killed"))
        finish(whole)
        counts: Counter[str] = Counter()
        kills = itertools.islice(matrix(seed=arguments.seed), arguments.kills)
        for number, kill in enumerate(kills):
            asynchronous = bool(number % 3 == 2)
            step = kill_and_look(
                killed, kill, asynchronous=asynchronous, after=chance.uniform(0, 0.5)
            )
            counts[str(kill)] += 1
            print(f"{number + 1:4}  killed: {kill}; newest checkpoint: step {step}", flush=True)
        finish(killed)
        assert_same_weights(whole, killed)
    for name, count in sorted(counts.items()):
        print(f"{count:4}  {name}")
    print(f"{sum(counts.values())} kills, all resumed; the final weights are bit-identical")


if __name__ == "__main__":
    main()

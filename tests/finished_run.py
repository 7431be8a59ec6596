"""One finished training run of the digits, for every test that only looks at a run."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.cli import main

# Everything that a run can measure is on; 11 steps are an epoch. So long a memory leaves the
# average of the weights next to the initial ones.
CONFIG = """
run: {name: small, dir: "RUNS", seed: 5}
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", val: "DIGITS/val"}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 128, norm_samples: 16, chunk: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
schedule: {name: one_cycle, warmup: 0.1}
training: {steps: 12, label_smoothing: 0.1, eval_every: 6, ema: 0.9999999}
checkpoint: {every: 3}
monitor: {every: 5, sharpness_every: 1, sharpness_samples: 32, progress: false}
"""
NUM_STEPS = 12


@dataclass(frozen=True)
class FinishedRun:
    """A run that is complete.

    Attributes:
        folder: of the run; nobody writes there.
        config: the file that it was started with.
        said: what the command printed at its end.
    """

    folder: Path
    config: Path
    said: str

    @property
    def newest(self) -> Path:
        """Its last checkpoint."""
        return self.folder / f"checkpoints/step-{NUM_STEPS:08d}"

    def copied(self, runs: Path, *, name: str = "small") -> Path:
        """A copy of the run's folder in another folder of runs, to be changed."""
        return Path(shutil.copytree(self.folder, runs / name))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> FinishedRun:
    """The run, made when a test first asks for it."""
    home = tmp_path_factory.mktemp("finished")
    config = home / "small.yaml"
    config.write_text(CONFIG.replace("RUNS", str(home / "runs")).replace("DIGITS", str(digits)))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["train", str(config)]) == 0
    return FinishedRun(home / "runs" / "small", config, said.getvalue())

"""A small run of the digits."""

from __future__ import annotations

from pathlib import Path

import pytest

# A run of a few seconds: the smallest wide ResNet, 11 steps an epoch.
SMALL = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", val: "DIGITS/val"}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 128, norm_samples: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
schedule: {name: one_cycle, warmup: 0.1}
training: {steps: 12, label_smoothing: 0.1, eval_every: 6}
monitor: {every: 2}
"""


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> str:
    """A config file in a folder of its own, which is the working folder."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("DIGITS", str(digits)))
    return str(path)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to `runs/` of the working folder."""
    monkeypatch.chdir(tmp_path)

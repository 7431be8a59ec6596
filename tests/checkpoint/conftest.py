"""A small run of the digits, as for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

_SMALL = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", val: "DIGITS/val"}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 64, norm_samples: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
training: {steps: 4}
monitor: {every: 2}
"""


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config file in a folder of its own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(_SMALL.replace("DIGITS", str(digits)))
    return str(path)

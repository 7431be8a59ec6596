"""A run that nothing disturbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_runs import SETTINGS

from launch.cli import main

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: DIGITS/train, val: DIGITS/val}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 32, norm_samples: 4}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
schedule: {name: one_cycle, warmup: 0.1}
training: {eval_every: 8}
monitor: {progress: false}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[str]:
    """A config in a folder that is the working folder, with an undisturbed run `whole`."""
    folder = tmp_path_factory.mktemp("stopping")
    path = folder / "small.yaml"
    path.write_text(CONFIG.replace("DIGITS", str(digits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", str(path), "run.name=whole", *SETTINGS]) == 0
        yield str(path)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of one test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

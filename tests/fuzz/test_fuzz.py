"""Configs, data and checkpoints that are damaged or strange end in one clear line.

Each case is made by a seed: a failure names it. `make test` runs a sample, `make test-all
PARTS=fuzz` all of them. What each is held to is in `harness.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import Checkpoints
from data_files import DataFiles
from harness import Case, run_cases

from configs import Configs, DeepSpeedConfigs

# How many there are, and how many of them are the sample.
SIZES = {
    "configs": (10_000, 60),
    "deepspeed": (5_000, 100),
    "data": (3_000, 60),
    "checkpoints": (1_000, 12),
}


def made(kind: str, home: Path, digits: Path) -> Case:
    """What runs one case of a kind, in an empty folder."""
    cases = {"configs": Configs, "data": DataFiles, "checkpoints": Checkpoints}
    return DeepSpeedConfigs(home) if kind == "deepspeed" else cases[kind](home, digits)


@pytest.mark.parametrize("kind", SIZES)
def test_a_sample(kind: str, tmp_path: Path, digits: Path) -> None:
    run_cases(made(kind, tmp_path, digits), seeds=range(SIZES[kind][1]))


@pytest.mark.part("fuzz")
@pytest.mark.parametrize("kind", SIZES)
def test_all(kind: str, tmp_path: Path, digits: Path) -> None:
    rate = run_cases(made(kind, tmp_path, digits), seeds=range(SIZES[kind][0]))
    print(f"{kind}: {rate:.1f} a second")

"""Configs, data, checkpoints and metrics that are damaged or strange end in one clear line.

Each case is made by a seed: a failure names it. `make test` runs a sample, `make test-all
PARTS=fuzz` all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import Checkpoints
from harness import Case, run_cases

# How many there are, and how many of them are the sample.
SIZES = {"checkpoints": (1_000, 12)}


def made(kind: str, home: Path, digits: Path) -> Case:
    """What runs one case of a kind, in an empty folder."""
    return Checkpoints(home, digits)


@pytest.mark.parametrize("kind", SIZES)
def test_a_sample(kind: str, tmp_path: Path, digits: Path) -> None:
    run_cases(made(kind, tmp_path, digits), seeds=range(SIZES[kind][1]))


@pytest.mark.part("fuzz")
@pytest.mark.parametrize("kind", SIZES)
def test_all(kind: str, tmp_path: Path, digits: Path) -> None:
    rate = run_cases(made(kind, tmp_path, digits), seeds=range(SIZES[kind][0]))
    print(f"{kind}: {rate:.1f} a second")

"""Runs and checkpoints from elsewhere, made to run commands, to take the memory, or to lie."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from finished_run import FinishedRun

from launch.cli import main


@pytest.fixture
def run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A run's folder in another place, to be changed."""
    return finished_run.copied(tmp_path, name="run")


def _ask_for_commands(run: Path, *, data: Path, victim: Path) -> None:
    """Makes a run's config fetch its data by a command that leaves a mark, and consent to it."""
    command = f"pipe:touch {victim}; cat {shlex.quote(str(data))}/{{name}}"
    path = run / "config.yaml"
    text = re.sub(r"(?m)^  train: .*$", f'  train: "{command}"', path.read_text())
    text = text.replace("  cache_dir: null", f"  cache_dir: {run.parent / 'cache'}")
    path.write_text(text.replace("  allow_commands: false", "  allow_commands: true"))


@pytest.mark.parametrize(
    "words",
    [
        ["sharpness", "RUN", "--samples", "16", "--iterations", "1"],
        ["landscape", "RUN", "--samples", "16", "--points", "3", "--out", "OUT.png"],
        ["report", "RUN", "--out", "OUT.png"],
        ["export", "RUN", "--format", "safetensors", "--out", "OUT"],
        ["checkpoint", "list", "RUN"],
        ["checkpoint", "verify", "RUN"],
        ["checkpoint", "inspect", "RUN", "--tensors"],
    ],
)
def test_a_run_does_not_consent_to_its_own_commands(
    words: list[str], run: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = run.parent / "victim"
    _ask_for_commands(run, data=digits / "train", victim=victim)
    line = [word.replace("RUN", str(run)).replace("OUT", str(run.parent / "out")) for word in words]
    opens_data = words[0] in ("sharpness", "landscape")
    assert main(line) == 2 * opens_data
    said = capsys.readouterr().err
    assert ("run/config.yaml: data.train: pipe:touch" in said) == opens_data
    assert ("--allow-code" in said) == opens_data
    assert not victim.exists()
    if opens_data:
        assert main([*line, "--allow-code"]) == 0
        assert victim.exists(), "consent was given"

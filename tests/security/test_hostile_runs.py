"""Runs and checkpoints from elsewhere, made to run commands, to take the memory, or to lie."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import NUM_STEPS, FinishedRun
from saved_state import checkpoint_tensors, edit_progress, rewrite_tensors

from launch.cli import main

_CHECKPOINT = f"checkpoints/step-{NUM_STEPS:08d}"
# Clears a terminal, starts a line anew, pretends to be a line of ours, turns the writing round.
_NAME = "\x1b[2J\r\nrun: intact\n\u202e\x9b31m"


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


def test_names_do_nothing_to_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / _CHECKPOINT
    tensors = checkpoint_tensors(newest)
    rewrite_tensors(newest, {**tensors, f"model/{_NAME}": torch.ones(3)})

    def rename(progress: dict[str, Any]) -> None:
        progress["optimizer"] = progress["versions"][_NAME] = _NAME
        progress["config"]["model"]["name"] = progress["extra"]["data_fingerprint"] = _NAME

    edit_progress(newest, rename)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: wrn-10-1", f"name: {json.dumps(_NAME)}"))
    for words in (
        ["checkpoint", "inspect", str(run), "--tensors"],
        ["checkpoint", "verify", str(run)],
        ["export", str(run), "--format", "safetensors", "--out", str(run / "out")],
        ["sharpness", str(run)],
        ["train", str(config), "training.steps=20"],
    ):
        main(words)
        said = "".join(capsys.readouterr())
        assert "run: intact" not in said.splitlines(), words
        assert all(line.isprintable() for line in said.split("\n")), words
    main(["checkpoint", "inspect", str(run), "--tensors"])
    assert capsys.readouterr().out.count(r"\x1b[2J\r\nrun: intact\n\u202e\x9b31m") == 6

"""`msam-scale checkpoint list | verify | inspect`, and exports of averaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finished_run import FinishedRun
from safetensors.torch import load_file
from saved_state import checkpoint_tensors

from launch.cli import main
from msam_scale.checkpoint import read_weights


@pytest.fixture
def run(finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two checkpoints, in the working folder."""
    monkeypatch.chdir(tmp_path)
    finished_run.copied(Path("runs"))
    return Path("runs/small")


def test_what_the_command_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (run, run / "checkpoints"):
        assert main(["checkpoint", "list", str(place)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["step-00000009", "step-00000012"]
        assert all(line.endswith("complete") for line in lines)
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count(": intact") == 2

    newest = run / "checkpoints/step-00000012"
    assert main(["checkpoint", "inspect", str(newest), "--tensors"]) == 0
    told = capsys.readouterr().out
    tensors = checkpoint_tensors(newest)
    assert "model:          msam_scale wrn-10-1" in told
    assert "step:           12" in told
    for name, tensor in tensors.items():
        assert f"{name}  {str(tensor.dtype)[6:]}  {tuple(tensor.shape)}" in told
    num_elements = sum(t.numel() for name, t in tensors.items() if name.startswith("optimizer/"))
    assert f"{num_elements:,} elements" in told

    (newest / "progress.json").unlink()
    assert main(["checkpoint", "list", str(run)]) == 0
    assert "progress.json: damaged: it is missing" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(newest)]) == 2
    capsys.readouterr()
    assert main(["checkpoint", "inspect", str(newest)]) == 2
    assert "progress.json: damaged: it is missing" in capsys.readouterr().err
    for action in ("list", "verify", "inspect"):
        assert main(["checkpoint", action, "nowhere"]) == 2
        assert "nowhere: no checkpoint here" in capsys.readouterr().err


def test_averaged_weights_are_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints/step-00000012"
    for averaged in (False, True):
        out = f"exported-{averaged}"
        words = ["--averaged"] if averaged else []
        command = ["export", str(run), "--format", "safetensors", "--out", out]
        assert main([*command, *words]) == 0
        expected = read_weights(newest, averaged=averaged)
        found = load_file(f"{out}/model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    plain, average = (load_file(f"exported-{one}/model.safetensors") for one in (False, True))
    assert not all(torch.equal(plain[name], tensor) for name, tensor in average.items())

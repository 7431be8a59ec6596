"""The benchmark of the loaders runs, on a few images; nothing is said about the times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_LOADERS = {
    "webdataset, torchvision",
    "timm's reader and transforms",
    "timm's reader, torchvision",
    "torchvision ImageFolder",
    "in memory, torchvision",
    "data_pipelines",
    "data_pipelines, streamed",
    "data_pipelines, resident",
}


@pytest.mark.part("benchmarks")
def test_loading_speed(tmp_path: Path) -> None:
    script = str(_ROOT / "tests" / "benchmarks" / "loading_speed.py")
    quick = ["--samples", "16", "--rounds", "1", "--seconds", "0", "--resume"]
    done = subprocess.run(
        [sys.executable, script, *quick, "--json", str(tmp_path / "found.json")],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(f"{name}  ") for line in lines) for name in _LOADERS)
    assert "photographs, 2 workers" in lines
    assert "until the first batch of 64, 1280000 samples, seconds" in lines
    found = json.loads((tmp_path / "found.json").read_text())
    assert {result["loader"] for result in found["results"]} >= _LOADERS
    speeds = [speed for result in found["results"] for speed in result["speeds"]]
    assert all(speed["per_core"] > 0 and speed["by_clock"] > 0 for speed in speeds)
    assert {(one["order"], one["share_done"]) for one in found["resumes"]} == {
        (order, share) for order in ("global", "window", "lanes") for share in (0.0, 0.5)
    }

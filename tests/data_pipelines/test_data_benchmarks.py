"""The benchmark of the loaders runs, on a few images; nothing is said about the times."""

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_RIVALS = {
    "webdataset, torchvision",
    "timm's reader and transforms",
    "timm's reader, torchvision",
    "torchvision ImageFolder",
    "in memory, torchvision",
}
_OWN = {"data_pipelines", "data_pipelines, streamed", "data_pipelines, resident"}


def test_loading_speed(tmp_path: Path) -> None:
    script = str(_ROOT / "tests" / "benchmarks" / "loading_speed.py")
    quick = ["--samples", "16", "--rounds", "1", "--seconds", "0", "--resume"]
    found_path = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, script, *quick, "--json", str(found_path)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for name in (*_RIVALS, *_OWN):
        assert any(line.startswith(f"{name}  ") for line in lines), name
    assert "photographs, 2 workers" in lines
    assert "small, in the process itself (0 workers)" in lines
    assert "until the first batch of 64, 1280000 samples, seconds" in lines
    found = json.loads(found_path.read_text())
    assert {result["loader"] for result in found["results"]} >= _RIVALS | _OWN
    assert all(
        speed["per_core"] > 0 and speed["by_clock"] > 0
        for result in found["results"]
        for speed in result["speeds"]
    )
    assert {(one["order"], one["share_done"]) for one in found["resumes"]} == {
        (order, share) for order in ("global", "window", "lanes") for share in (0.0, 0.5)
    }

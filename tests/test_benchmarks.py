"""The benchmarks run, on something small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_a_sharded_vision_transformer() -> None:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    script = str(_ROOT / "tests" / "benchmarks" / "vit_large_sharded.py")
    words = ["--model", "vit_tiny_patch16_224", "--image-size", "32"]
    done = subprocess.run(
        [torchrun, "--nproc-per-node", "2", script, *words],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["rank"] for result in results] == [0, 1]
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["peak_gib"] > 0

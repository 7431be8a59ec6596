"""The benchmarks run, on something small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.part("benchmarks")

_ROOT = Path(__file__).parents[1]


def _step(*words: str) -> subprocess.CompletedProcess[str]:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    script = str(_ROOT / "tests" / "benchmarks" / "vit_large_sharded.py")
    model = ["--model", "vit_base_patch16_224", "--image-size", "32"]
    return subprocess.run(
        [torchrun, "--standalone", "--nproc-per-node", "2", script, *model, *words],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_sharded_vision_transformer() -> None:
    done = _step("--limit-gib", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["rank"] for result in results] == [0, 1]
    assert results[0]["loss"] == results[1]["loss"]
    assert all(0 < result["peak_gib"] < result["replicated_gib"] for result in results)


def test_what_does_not_fit_is_refused() -> None:
    refused = _step("--limit-gib", "0.3", "--strategy", "replicated")
    assert refused.returncode != 0
    assert "can't allocate memory" in refused.stderr


def test_asynchronous_saving(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(_ROOT / "tests" / "benchmarks"))
    try:
        from asynchronous_saving import main
    finally:
        sys.path.pop(0)
    main(["--rounds", "1", "--width", "32"])
    told = capsys.readouterr().out
    assert "4 steps apart from saves" in told
    assert "training is held up for" in told

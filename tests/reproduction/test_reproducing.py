"""A small experiment, done for real: finished, killed and continued, failing, measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from saved_state import assert_same_tensors

from data_pipelines import prepare

_ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 128, norm_samples: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
schedule: {name: one_cycle, warmup: 0.1}
training: {steps: 12, eval_every: 4}
checkpoint: {every: 2}
monitor: {tensorboard: false}
"""

EXPERIMENT = """
title: small
measure: MEASURE
axis: AXIS
published:
  source: nowhere
  rows: {other: {title: another net, values: {msam: {mean: 50.0, std: 1.0}}}}
scales:
  laptop:
    datasets: {digits: {prepare: digits, is_embedded: true}}
    columns: {msam: {title: mSAM, algorithm: msam, at: 4, series: mSAM}}
    rows:
      good: {title: good, config: small.yaml, dataset: digits, paper: other}
"""

BAD_ROW = """
      bad: {title: bad, config: small.yaml, dataset: digits, overrides: [model.args.beauty=1]}
"""


def _words(home: Path, name: str, *words: str) -> list[str]:
    experiment = str(home / f"{name}.yaml")
    data = f"digits={home / 'digits'}"
    return [sys.executable, "-m", "launch.cli", "reproduce", experiment, "--data", data, *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def _call(home: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _words(home, name, *words), cwd=home, env=_environment(), capture_output=True, text=True
    )


def _values(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with experiments, whose `small` has been done with two seeds into `whole`."""
    home = tmp_path_factory.mktemp("reproduce")
    prepare("digits", out=home / "digits")
    (home / "small.yaml").write_text(CONFIG)
    small = EXPERIMENT.replace("MEASURE", "metric").replace("AXIS", "m")
    (home / "experiment.yaml").write_text(small)
    (home / "failing.yaml").write_text(small + BAD_ROW)
    measuring = EXPERIMENT.replace("MEASURE", "lambda_max").replace("AXIS", "null")
    (home / "measuring.yaml").write_text(measuring)
    done = _call(home, "experiment", "--out", "whole", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    return home


def test_the_table_is_what_the_runs_have_found(home: Path) -> None:
    accuracies = []
    for seed in (0, 1):
        lines = (home / f"whole/runs/good-msam-seed{seed}/metrics.jsonl").read_text().splitlines()
        last = [line for line in map(json.loads, lines) if line["split"] == "val"][-1]
        assert last["step"] == 12
        accuracies.append(100 * last["accuracy"])
    table = (home / "whole/experiment.md").read_text("utf-8")
    assert f"| good | {mean(accuracies):.2f} ± {stdev(accuracies):.2f} |" in table
    assert "| *the paper: another net* | *50.00 ± 1.00* |" in table
    command = f"reproduce {home / 'experiment.yaml'} --scale laptop --seeds 2 --out whole"
    assert f"    msam-scale {command} --data digits={home / 'digits'}" in table
    assert (home / "whole/experiment.png").read_bytes().startswith(b"\x89PNG")
    values = _values(home / "whole/experiment.json")
    assert [one["value"] for one in values["values"]] == accuracies
    assert values["missing"] == []


def test_a_killed_one_goes_on_to_the_same_result(home: Path) -> None:
    words = _words(home, "experiment", "--out", "killed", "--seeds", "2")
    process = subprocess.Popen(
        words, cwd=home, env=_environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    first = home / "killed/runs/good-msam-seed0/checkpoints/latest"
    deadline = time.monotonic() + 120
    while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first.is_file()
    assert not (home / "killed/experiment.md").exists()

    again = _call(home, "experiment", "--out", "killed", "--seeds", "2")
    assert again.returncode == 0, again.stderr
    log = (home / "killed/logs/runs-good-msam-seed0.log").read_text()
    assert "resumed after step" in log
    for name in ("whole", "killed"):
        assert _values(home / name / "experiment.json")["summary"][0]["num_values"] == 2
    whole, killed = (_values(home / name / "experiment.json") for name in ("whole", "killed"))
    for one, other in zip(whole["values"], killed["values"], strict=True):
        assert one["value"] == other["value"]
        step = "checkpoints/step-00000012"
        assert_same_tensors(home / one["run"] / step, home / other["run"] / step)


def test_one_that_fails_does_not_stop_the_others(home: Path) -> None:
    """The good runs are those of `whole`, which are not done again."""
    before = (home / "whole/runs/good-msam-seed0/metrics.jsonl").stat().st_mtime_ns
    failed = _call(home, "failing", "--out", "whole", "--seeds", "1")
    assert failed.returncode == 1
    assert "good-msam-seed0: was there" in failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("msam-scale: bad-msam-seed0: ")
    assert "beauty" in last
    log = home / "whole/logs/runs-bad-msam-seed0.log"
    assert last.endswith(f"({log.relative_to(home)})")
    assert "beauty" in log.read_text()
    assert "Not finished (1 of 2 runs): bad-msam-seed0." in failed.stdout
    assert (home / "whole/runs/good-msam-seed0/metrics.jsonl").stat().st_mtime_ns == before


def test_runs_of_other_settings_are_not_taken(home: Path) -> None:
    refused = _call(home, "experiment", "--out", "whole", "--seeds", "1", "optimizer.lr=0.2")
    assert refused.returncode == 2
    assert "optimizer.lr was 0.1 and is now 0.2" in refused.stderr


def test_a_measurement_is_made_once(home: Path) -> None:
    first = _call(home, "measuring", "--out", "whole", "--seeds", "1")
    assert first.returncode == 0, first.stderr
    kept = home / "whole/runs/good-msam-seed0/measurements/lambda_max.json"
    time_made = kept.stat().st_mtime_ns
    found = json.loads(kept.read_text())
    assert found["samples"] == 1437
    assert f"| good | {found['lambda_max']:.2f} |" in first.stdout
    second = _call(home, "measuring", "--out", "whole", "--seeds", "1")
    assert second.returncode == 0, second.stderr
    assert kept.stat().st_mtime_ns == time_made
    assert second.stdout == first.stdout

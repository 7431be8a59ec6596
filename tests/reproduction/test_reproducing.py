"""A small experiment, done for real: continued, failing, interrupted, measured once.

Runs that only have to be there are trained in this process, by the words of their cells.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import pytest
from saved_state import assert_same_tensors

from launch.cli import main
from msam_scale.reproduction import Plan, load_experiment, make_plan
from msam_scale.reproduction.cells import Cell
from msam_scale.reproduction.measures import MEASURES
from msam_scale.reproduction.results import collect
from msam_scale.reproduction.running import Resources, Runner
from msam_scale.reproduction.state import look_at

_ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 64, norm_samples: 16}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
schedule: {name: one_cycle, warmup: 0.2}
training: {steps: 6, eval_every: 3}
checkpoint: {every: 2}
monitor: {tensorboard: false, every: 1}
"""

EXPERIMENT = """
title: small
measure: MEASURE
axis: AXIS
published:
  source: nowhere
  rows: {other: {title: another net, values: {vanilla: {mean: 20.0}, msam: {mean: 50.0, std: 1.0}}}}
scales:
  laptop:
    datasets: {digits: {prepare: digits, is_embedded: true}}
    columns:COLUMNS
      msam: {title: mSAM, algorithm: msam, at: 4, series: mSAM}
    rows:
      good: {title: good, config: small.yaml, dataset: digits, paper: other}
"""

VANILLA = "\n      vanilla: {title: vanilla, algorithm: vanilla}"
BAD_ROW = """
      bad: {title: bad, config: small.yaml, dataset: digits, overrides: [model.args.beauty=1]}
"""
_ALONE = Resources(num_jobs=1, num_threads=1)
_STALE = b'{"stale": true}\n'


class _Schema:
    """Takes what a quick command of ours prints for a measurement."""

    label, num_decimals, runs_alone, relative_to = "properties", 0, False, None

    def follow_up(self, run: Path) -> tuple[str, ...]:
        return ("config", "schema")

    def value(self, run: Path, *, metric: str, found: Mapping[str, Any]) -> float:
        return float(len(found["properties"]))


@dataclass(frozen=True)
class _Home:
    """Where the experiments are, and what a runner has said about the cells of `experiment`."""

    folder: Path
    digits: Path
    said: tuple[str, ...]
    cells: tuple[Cell, ...]

    def words(self, name: str, *words: str) -> list[str]:
        data = f"digits={self.digits}"
        return ["reproduce", f"{name}.yaml", "--out", "whole", "--data", data, *words]

    def call(self, name: str, *words: str) -> tuple[int, str, str]:
        """Exit code and what was said, of a `reproduce` in this process."""
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main(self.words(name, *words))
        return code, out.getvalue(), error.getvalue()


def _plan(name: str, digits: Path, *, num_seeds: int, out: str = "whole") -> Plan:
    path = Path(f"{name}.yaml")
    return make_plan(
        path,
        load_experiment(path),
        scale="laptop",
        out=Path(out),
        num_seeds=num_seeds,
        data={"digits": digits},
    )


def _lines(cell: Cell) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cell.run / "metrics.jsonl").read_text().splitlines()]


def _cut_back(cell: Cell) -> None:
    """As if it had been killed after the checkpoint of step 4."""
    checkpoints = cell.run / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000006")
    (checkpoints / "latest").write_text("step-00000004\n")
    kept = [json.dumps(line) for line in _lines(cell) if line["step"] <= 4]
    (cell.run / "metrics.jsonl").write_text("\n".join(kept) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[_Home]:
    """Two seeds of `experiment`, of which one was done, and one was cut short and then finished."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "small.yaml").write_text(CONFIG)

    def write(name: str, measure: str, *, axis: str = "null", columns: str = "") -> None:
        text = EXPERIMENT.replace("MEASURE", measure).replace("AXIS", axis)
        (folder / f"{name}.yaml").write_text(text.replace("COLUMNS", columns))

    write("experiment", "metric", axis="m")
    write("failing", "metric", axis="m")
    with (folder / "failing.yaml").open("a") as file:
        file.write(BAD_ROW)
    write("timing", "step_time", columns=VANILLA)
    write("measuring", "lambda_max")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cells = _plan("experiment", digits, num_seeds=2).cells
        for cell in cells:
            assert main(list(cell.words)) == 0
            (cell.run / "measurements").mkdir()
            (cell.run / "measurements/schema.json").write_bytes(_STALE)
        _cut_back(cells[1])
        said: list[str] = []
        runner = Runner(
            command=(sys.executable, "-m", "launch.cli"),
            out=Path("whole"),
            measure=_Schema(),
            measure_name="schema",
            resources=_ALONE,
            say=said.append,
        )
        patch.setenv("PYTHONPATH", str(_ROOT))
        assert runner.run(cells) == []
        yield _Home(folder, digits, tuple(said), cells)


def test_a_run_that_was_cut_short_goes_on_and_is_measured_anew(home: _Home) -> None:
    whole, continued = home.cells
    assert home.said[0].startswith("[1/2] good-msam-seed0: was there; ")
    assert home.said[1].startswith("[2/2] good-msam-seed1: ")
    assert "resumed after step 4" in Path("whole/logs/runs-good-msam-seed1.log").read_text()
    assert not Path("whole/logs/runs-good-msam-seed0.log").exists()
    assert look_at(continued).is_finished
    assert (whole.run / "measurements/schema.json").read_bytes() == _STALE
    assert "properties" in json.loads((continued.run / "measurements/schema.json").read_text())


def test_the_table_is_what_the_runs_have_found(home: _Home) -> None:
    code, out, error = home.call("experiment", "--seeds", "2")
    assert code == 0, error
    last = [[line for line in _lines(cell) if line["split"] == "val"][-1] for cell in home.cells]
    assert [line["step"] for line in last] == [6, 6]
    accuracies = [100 * line["accuracy"] for line in last]
    table = Path("whole/experiment.md").read_text("utf-8")
    assert out.startswith(table)
    assert f"| good | {mean(accuracies):.2f} ± {stdev(accuracies):.2f} |" in table
    assert "| *the paper: another net* | *50.00 ± 1.00* |" in table
    command = "reproduce experiment.yaml --scale laptop --seeds 2 --out whole"
    digits = shlex.quote(f"digits={home.digits}")
    assert f"    msam-scale {command} --data {digits}" in table
    assert Path("whole/experiment.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads(Path("whole/experiment.json").read_text("utf-8"))
    assert [one["value"] for one in values["values"]] == accuracies
    assert values["missing"] == []


def test_one_that_fails_does_not_stop_the_others(home: _Home) -> None:
    before = (home.cells[0].run / "metrics.jsonl").stat().st_mtime_ns
    code, out, error = home.call("failing", "--seeds", "1")
    assert code == 1
    assert "good-msam-seed0: was there" in error
    last = error.splitlines()[-1]
    assert last.startswith("msam-scale: bad-msam-seed0: ")
    assert "beauty" in last
    log = Path("whole/logs/runs-bad-msam-seed0.log")
    assert last.endswith(f"({log})")
    assert "beauty" in log.read_text()
    assert "Not finished (1 of 2 runs): bad-msam-seed0." in out
    assert (home.cells[0].run / "metrics.jsonl").stat().st_mtime_ns == before


def test_times_are_divided_by_those_of_vanilla(home: _Home) -> None:
    plan = _plan("timing", home.digits, num_seeds=1)
    vanilla, msam = plan.cells
    assert collect(plan).missing == (vanilla, msam), "a time without vanilla's is none"
    assert main(list(vanilla.words)) == 0
    times = [
        [line["step_milliseconds"] for line in _lines(cell) if "step_milliseconds" in line]
        for cell in plan.cells
    ]
    one, other = (median(times_of_one[1:]) for times_of_one in times)
    results = collect(plan)
    assert [value.value for value in results.values] == [1.0, other / one]
    row = results.paper_row("good")
    assert row is not None
    assert [value.mean for value in row.values.values()] == [1.0, 2.5]


def test_a_run_is_finished_when_it_has_reported(home: _Home) -> None:
    """A kill may come between the last checkpoint and the last evaluation."""
    cell = home.cells[0]
    path = cell.run / "metrics.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    state = look_at(cell)
    path.write_text(whole)
    assert (state.num_steps, state.num_steps_saved, state.is_finished) == (6, 6, False)
    assert look_at(cell).is_finished


def test_runs_of_other_settings_are_not_taken(home: _Home) -> None:
    code, _, error = home.call("experiment", "--seeds", "1", "optimizer.lr=0.2")
    assert code == 2
    assert "optimizer.lr was 0.1 and is now 0.2" in error


def test_measurements_that_cannot_be_used_are_named(home: _Home) -> None:
    path = home.cells[0].run / "measurements/lambda_max.json"
    path.write_text('{"converged": false, "lambda_max": 3.0}')
    results = collect(_plan("measuring", home.digits, num_seeds=1))
    assert results.values == ()
    assert "λ_max has not converged" in results.problems[0]
    path.write_text('{"converged": true, "lambda_max": 3.0}')
    [value] = collect(_plan("measuring", home.digits, num_seeds=1)).values
    assert value.value == 3.0
    path.write_text("{")
    code, _, error = home.call("measuring", "--seeds", "1")
    path.unlink()
    assert code == 2
    assert f"{path}: damaged: " in error


def test_an_interrupt_ends_the_processes(home: _Home) -> None:
    program = (
        "import sys, time; 'run.seed=1' in sys.argv and sys.exit('broken');"
        "time.sleep(60); open('survived', 'w')"
    )

    def say(text: str) -> None:
        assert "good-msam-seed1: FAILED: broken" in text
        raise KeyboardInterrupt

    runner = Runner(
        command=(sys.executable, "-S", "-c", program),
        out=Path("interrupted"),
        measure=MEASURES["metric"],
        measure_name="metric",
        resources=Resources(num_jobs=2, num_threads=1),
        say=say,
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run(_plan("experiment", home.digits, num_seeds=2, out="interrupted").cells)
    assert not Path("survived").exists()


def _process(words: Sequence[str], **arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *words],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        start_new_session=True,
        **arguments,
    )


@pytest.mark.part("reproduction")
def test_a_killed_one_goes_on_to_the_same_result(home: _Home) -> None:
    def words(out: str) -> list[str]:
        return [*home.words("experiment", "--seeds", "2"), "--out", out]

    assert _process(words("undisturbed")).wait() == 0
    process = _process(words("killed"))
    first = Path("killed/runs/good-msam-seed0/checkpoints/latest")
    deadline = time.monotonic() + 120
    while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first.is_file()
    assert not Path("killed/experiment.md").exists()

    assert _process(words("killed")).wait() == 0
    assert "resumed after step" in Path("killed/logs/runs-good-msam-seed0.log").read_text()
    undisturbed, killed = (
        json.loads(Path(name, "experiment.json").read_text("utf-8"))
        for name in ("undisturbed", "killed")
    )
    assert len(killed["values"]) == 2
    for one, other in zip(undisturbed["values"], killed["values"], strict=True):
        assert one["value"] == other["value"]
        step = "checkpoints/step-00000006"
        assert_same_tensors(Path(one["run"], step), Path(other["run"], step))


@pytest.mark.part("reproduction")
def test_an_eigenvalue_is_measured_once(home: _Home) -> None:
    code, first, error = home.call("measuring", "--seeds", "1")
    assert code == 0, error
    kept = home.cells[0].run / "measurements/lambda_max.json"
    time_made = kept.stat().st_mtime_ns
    found = json.loads(kept.read_text())
    assert found["samples"] == 1437
    assert f"| good | {found['lambda_max']:.2f} |" in first
    code, second, error = home.call("measuring", "--seeds", "1")
    assert code == 0, error
    assert kept.stat().st_mtime_ns == time_made
    assert second == first

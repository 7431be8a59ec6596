"""What is drawn of runs, and what their speed is counted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finished_run import FinishedRun
from matplotlib.figure import Figure

from launch.cli import main
from msam_scale.monitoring import throughput
from msam_scale.monitoring.throughput import Throughput


def _drawn(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of each panel what its lines go through, by the run's name."""
    figures: list[Figure] = []
    save = Figure.savefig

    def seen(figure: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", seen)
        assert main(["report", *map(str, runs), "--out", "curves.png"]) == 0
    assert Path("curves.png").stat().st_size > 10_000
    return [
        {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}
        for axes in figures[0].axes
    ]


def test_a_report_draws_the_lines_of_its_runs(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = finished_run.copied(Path("runs"), name="again")
    path = again / "metrics.jsonl"
    right = [json.loads(line) for line in path.read_text().splitlines()]
    # As of a run that went back after step 10, did it again, and met a loss that was none.
    undone = {**right[0], "step": 10, "epoch": 10 / 11, "loss": 99.0, "ascent_norm": 99.0}
    unknown = {**right[0], "step": 13, "epoch": 2.0, "loss": None, "ascent_norm": None}
    lines = [right[0], undone, *right[1:], unknown]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = _drawn([finished_run.folder, again], monkeypatch)
    for panel, (split, name) in zip(
        panels, (("train", "loss"), ("val", "accuracy"), ("train", "ascent_norm")), strict=True
    ):
        points = [[x["epoch"], x[name]] for x in right if x["split"] == split and name in x]
        assert panel == {"small": points, "again": points}


def test_what_cannot_be_drawn_is_said(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(finished_run.folder)
    for words, expected in (
        ([run, "--out", "curves.txt"], "curves.txt has no format that can be drawn"),
        ([run, "--out", "nowhere/curves.png"], "cannot be written: No such file"),
        (["nowhere", "--out", "curves.png"], "missing; the folder of a run with monitor.jsonl"),
    ):
        assert main(["report", *words]) == 2
        assert expected in capsys.readouterr().err
    again = finished_run.copied(Path("runs"))
    (again / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["report", str(again), "--out", "curves.png"]) == 2
    assert "metrics.jsonl: line 1 is damaged" in capsys.readouterr().err


def test_speed_counts_steps_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    speed = Throughput(batch_size=64, flops_per_sample=1e6, peak_flops=1e9)
    now = 50.0
    speed.count()
    assert speed.read() == {}, "the first step is slow"
    for _ in range(4):
        now += 0.5
        speed.count()
    speed.pause()
    now += 1000.0  # an evaluation
    speed.resume()
    expected = {"samples_per_second": 128.0, "step_milliseconds": 500.0, "mfu": 0.128}
    assert speed.read() == pytest.approx(expected)
    now += 2.0
    speed.count()
    assert speed.read()["step_milliseconds"] == pytest.approx(2000.0)

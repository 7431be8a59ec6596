"""Every experiment's file, laid out into runs whose configs are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from launch.cli import main
from msam_scale.config import load_config
from msam_scale.reproduction import (
    Plan,
    experiment_names,
    find_experiment,
    load_experiment,
    make_plan,
)
from msam_scale.reproduction.experiment import PaperValue, ScaleName
from msam_scale.reproduction.measures import MEASURES
from msam_scale.reproduction.reproduce import share_of
from msam_scale.reproduction.results import spread
from msam_scale.reproduction.tables import entry


def _plan(name: str, scale: ScaleName, **options: object) -> Plan:
    path = find_experiment(name)
    given_options = {"out": Path("out"), "num_seeds": 2, **options}
    return make_plan(path, load_experiment(path), scale=scale, **given_options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name", experiment_names())
def test_the_configs_of_all_runs_are_right(name: str, scale: ScaleName) -> None:
    plan = _plan(name, scale)  # raises where one is not
    runs = [cell.run for cell in plan.cells]
    assert len(set(runs)) == len(runs) == 2 * len(plan.scale.rows) * len(plan.scale.columns)
    for cell in plan.cells[: len(runs) // 2]:
        config = load_config(cell.config, overrides=cell.overrides, world_size=cell.num_ranks)
        column = plan.scale.columns[cell.column]
        if not config.objective.phases:
            assert config.objective.algorithm == column.algorithm
        assert config.run.seed == cell.seed == 0
        assert Path(config.run.dir) / str(config.run.name) == cell.run


def test_the_experiments_are_there() -> None:
    expected = {"table2", "table3", "table4", "table5", "figure1", "figureB1"}
    assert expected <= set(experiment_names())


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_runs_are_shared_between_experiments(scale: ScaleName) -> None:
    """A run that two experiments have is the same run, and only what differs has another name."""
    of_table = {cell.run: cell for cell in _plan("table2", scale).cells}
    assert {cell.run for cell in _plan("table4", scale).cells} <= of_table.keys()
    for name in ("table4", "figure1", "figureB1"):
        common = [cell for cell in _plan(name, scale).cells if cell.run in of_table]
        assert {cell.column for cell in common} == {"vanilla", "sam", "msam"}
        assert common == [of_table[cell.run] for cell in common]
    assert not {cell.run for cell in _plan("table5", scale).cells} & of_table.keys()


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_hybrid_runs_switch_where_the_column_says(scale: ScaleName) -> None:
    plan = _plan("figureB1", scale)
    num_switching = 0
    for cell in plan.cells:
        column = plan.scale.columns[cell.column]
        if column.at is None:
            continue
        num_switching += 1
        config = load_config(cell.config, overrides=cell.overrides)
        (phase,) = config.objective.phases
        assert phase.until == column.at / 100
        first, second = phase.algorithm, config.objective.algorithm
        assert {first, second} == {"vanilla", "msam"}
        assert column.series == ("mSAM first" if first == "msam" else "vanilla first")
    assert num_switching == 2 * len(plan.scale.rows) * 8


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_figure_1_varies_m_alone(scale: ScaleName) -> None:
    plan = _plan("figure1", scale)
    for cell in plan.cells:
        column = plan.scale.columns[cell.column]
        config = load_config(cell.config, overrides=cell.overrides)
        if column.at is not None:
            assert (config.objective.micro_batches or 1) == column.at


def test_values_of_the_paper_name_their_table() -> None:
    published = load_experiment(find_experiment("table2")).published
    assert published.source.startswith("Table 2 of arXiv 2302.09693")
    assert published.rows["cifar100_wrn_28_10"].values["msam"] == PaperValue(mean=84.07, std=0.06)
    assert all(set(row.values) == {"vanilla", "sam", "msam"} for row in published.rows.values())


@given(st.lists(st.floats(0, 100), max_size=7))
def test_mean_and_sample_standard_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found.num_values == len(values)
    assert (found.mean is None) == (not values)
    assert (found.std is None) == (len(values) < 2)
    if found.mean is not None:
        assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    if found.std is not None:
        assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-12)


def test_the_metric_after_the_last_step_counts(tmp_path: Path) -> None:
    """Not the best one, and not the training's."""
    lines: list[dict[str, Any]] = [
        {"step": 1, "epoch": 0, "split": "val", "accuracy": 0.9},
        {"step": 2, "epoch": 0, "split": "val", "accuracy": 0.8},
        {"step": 2, "epoch": 0, "split": "train", "accuracy": 0.95},
        {"step": 3, "epoch": 0, "split": "val", "loss": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    measure = MEASURES["metric"]
    assert measure.value(tmp_path, metric="accuracy", found={}) == 80.0
    with pytest.raises(UserError, match="no validation line has 'beauty'"):
        measure.value(tmp_path, metric="beauty", found={})


def test_the_first_timed_report_warms_up(tmp_path: Path) -> None:
    measure, path = MEASURES["step_time"], tmp_path / "metrics.jsonl"
    for times, expected in (([100.0, 1.0, 4.0, 2.0], 2.0), ([100.0, 3.0], 3.0)):
        line = {"step": 1, "epoch": 0, "split": "train"}
        lines = [{**line, "step_milliseconds": time} for time in times]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert measure.value(tmp_path, metric="accuracy", found={}) == expected
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="1 timed reports"):
        measure.value(tmp_path, metric="accuracy", found={})


def test_entries() -> None:
    assert entry(spread([1.0, 2.0]), num_decimals=2, num_seeds=2) == "1.50 ± 0.71"
    assert entry(spread([1.0, 2.0]), num_decimals=1, num_seeds=5) == "1.5 ± 0.7 (n = 2)"
    assert entry(spread([1.0]), num_decimals=1, num_seeds=1) == "1.0"
    assert entry(spread([]), num_decimals=1, num_seeds=5) == "–"


def test_shares_are_all_runs_once() -> None:
    plan = _plan("table4", "laptop", num_seeds=5)
    shares = [cell for index in range(4) for cell in share_of(plan, (index, 4))]
    assert sorted(cell.run for cell in shares) == sorted(cell.run for cell in plan.cells)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["table7"], "'table7' is no experiment; figure1, "),
        (["table4", "--rows", "iris"], "--rows: iris is no row; digits_wrn, digits_vit works"),
        (["table4", "--data", "iris=x"], "--data iris=…: is no data set here; digits works"),
        (["table4", "run.seed=3"], "run.seed=3: reproduce sets run.seed itself"),
        (["table4", "batch.size=100"], "digits_wrn, msam: "),
        (["table5", "--jobs", "2"], "--jobs 2: table5 measures times"),
        (
            ["table2", "--rows", "mnist_wrn"],
            "the data set mnist is not there; msam-scale data prepare mnist --source FOLDER --out "
            "data/mnist makes it, or --data mnist=DIR says where it is",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table2", "--scale", "paper", "--seeds", "1", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 * 3
    assert lines[0].startswith("msam-scale train ")
    assert all("--nproc 4" in line or "--nproc 8" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: [", "cannot be read"),
        ("title: x\nmeasure: metric\nscales: {}", "published: Field required"),
        ("title: x\nmeasure: beauty\npublished: {source: x}\nscales: {}", "beauty is none of"),
    ],
)
def test_a_damaged_file_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load_experiment(find_experiment(str(path)))


@pytest.mark.parametrize("name", ["table2", "table5"])
def test_a_machine_does_all_columns_of_a_seed(name: str) -> None:
    """Else times of different machines would be divided by each other."""
    plan = _plan(name, "laptop")
    shares = [{(cell.row, cell.seed) for cell in share_of(plan, (i, 3))} for i in range(3)]
    assert not set.intersection(*shares)
    assert sum(map(len, shares)) == len({(cell.row, cell.seed) for cell in plan.cells})


def test_what_columns_decide_cannot_be_set_for_all_runs() -> None:
    with pytest.raises(UserError, match=r"reproduce sets objective\.micro_batches itself"):
        _plan("figure1", "laptop", overrides=["objective.micro_batches=4"])
    _plan("table2", "laptop", overrides=["objective.rho=0.2"])

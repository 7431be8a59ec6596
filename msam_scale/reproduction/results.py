"""The values of an experiment's runs, and their spread over the seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from data_pipelines.errors import UserError
from msam_scale.reproduction.cells import Cell, Plan
from msam_scale.reproduction.experiment import PaperRow
from msam_scale.reproduction.measures import MEASURES, Measure
from msam_scale.reproduction.state import look_at


@dataclass(frozen=True)
class CellValue:
    """The value of one run.

    Attributes:
        cell: which.
        measured: as the run or its measurement has it.
        value: what counts: `measured`, or its ratio to that of `Measure.relative_to`.
        found: what the follow-up has printed; empty without one.
    """

    cell: Cell
    measured: float
    value: float
    found: dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Values over seeds.

    Attributes:
        num_values: how many.
        mean: of them; None of none.
        std: sample standard deviation, with n - 1; None of fewer than two.
    """

    num_values: int
    mean: float | None
    std: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(
        num_values=len(values),
        mean=mean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
    )


@dataclass(frozen=True)
class Results:
    """All that is known.

    Attributes:
        plan: what was to be done.
        values: of the finished runs.
        missing: the runs that are not finished or not measured.
        problems: why a finished run has no value.
    """

    plan: Plan
    values: tuple[CellValue, ...]
    missing: tuple[Cell, ...]
    problems: tuple[str, ...] = ()

    def spread(self, row: str, column: str) -> Spread:
        """Of one entry of the table."""
        return spread(
            [one.value for one in self.values if one.cell.row == row and one.cell.column == column]
        )

    def paper_row(self, row: str) -> PaperRow | None:
        """What the paper has for a row, as it counts here."""
        experiment = self.plan.experiment
        name = self.plan.scale.rows[row].paper
        if name is None:
            return None
        printed = experiment.published.rows[name]
        base = MEASURES[experiment.measure].relative_to
        if base is None:
            return printed
        unit = printed.values[base].mean
        ratios = {
            column: one.model_copy(update={"mean": one.mean / unit, "std": None})
            for column, one in printed.values.items()
        }
        return printed.model_copy(update={"values": ratios})


def collect(plan: Plan) -> Results:
    """Reads the values of all finished runs of a plan, whoever has done them.

    Raises:
        UserError: a folder holds another run.
    """
    measure = MEASURES[plan.experiment.measure]
    measured: dict[tuple[str, int, str], tuple[Cell, float, dict[str, Any]]] = {}
    missing: list[Cell] = []
    problems: list[str] = []
    for cell in plan.cells:
        found = _found(plan, measure, cell)
        if found is None:
            missing.append(cell)
            continue
        try:
            value = measure.value(cell.run, metric=cell.metric, found=found)
        except UserError as error:
            problems.append(str(error))
            missing.append(cell)
            continue
        measured[cell.row, cell.seed, cell.column] = (cell, value, found)
    values = []
    for (row, seed, _), (cell, value, found) in measured.items():
        unit = 1.0
        if measure.relative_to is not None:
            base = measured.get((row, seed, measure.relative_to))
            if base is None:
                missing.append(cell)
                continue
            unit = base[1]
        values.append(CellValue(cell, measured=value, value=value / unit, found=found))
    return Results(
        plan=plan, values=tuple(values), missing=tuple(missing), problems=tuple(problems)
    )


def measurement_path(measure: str, cell: Cell) -> Path:
    """Where what a follow-up has found of a run is kept: it goes with the run."""
    return cell.run / "measurements" / f"{measure}.json"


def as_json(results: Results, *, command: str) -> dict[str, Any]:
    """Every single value, and what the table shows, for other programs.

    Args:
        results: all that is known.
        command: that made them.
    """
    plan = results.plan
    return {
        "experiment": plan.name,
        "title": plan.experiment.title,
        "scale": plan.scale_name,
        "command": command,
        "measure": plan.experiment.measure,
        "values": [
            {
                "row": one.cell.row,
                "column": one.cell.column,
                "seed": one.cell.seed,
                "value": one.value,
                "measured": one.measured,
                "run": str(one.cell.run),
                "found": one.found,
            }
            for one in results.values
        ],
        "summary": [
            {"row": row, "column": column, **vars(results.spread(row, column))}
            for row in plan.scale.rows
            for column in plan.scale.columns
        ],
        "missing": [cell.run.name for cell in results.missing],
        "published": plan.experiment.published.model_dump(mode="json"),
    }


def _found(plan: Plan, measure: Measure, cell: Cell) -> dict[str, Any] | None:
    """What the follow-up has found, {} where there is none to do; None: not finished."""
    if not look_at(cell).is_finished:
        return None
    if measure.follow_up(cell.run) is None:
        return {}
    path = measurement_path(plan.experiment.measure, cell)
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}; remove it") from error
    return found

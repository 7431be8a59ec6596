"""Does an experiment from its plan: data, runs, measurements, table and picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError
from data_pipelines.progress import Progress, no_progress
from msam_scale.reproduction.cells import Cell, Plan
from msam_scale.reproduction.datasets import ensure_data
from msam_scale.reproduction.measures import MEASURES
from msam_scale.reproduction.pictures import check_can_draw, draw
from msam_scale.reproduction.results import Results, as_json, collect
from msam_scale.reproduction.running import Failure, Resources, Runner
from msam_scale.reproduction.state import look_at
from msam_scale.reproduction.tables import markdown


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        table: the Markdown file.
        results: what is known now, from this machine and others.
        failures: runs of this machine that failed.
    """

    table: Path
    results: Results
    failures: list[Failure]


def reproduce(
    plan: Plan,
    *,
    command: Sequence[str],
    called_as: str,
    resources: Resources,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None],
    progress: Progress = no_progress,
) -> Outcome:
    """Does the runs that are not finished, then writes table, picture and single values.

    Args:
        plan: what is to be done.
        command: starts `msam-scale`, as words.
        called_as: the command that asks for all this, for the table.
        resources: what the runs share.
        share: (i, n): this machine does every n-th row of a seed, from the i-th on.
        say: is told what happens, a line at a time.
        progress: is told how far making data is.

    Raises:
        UserError: data are missing, or the output folder holds runs of other settings.
    """
    measure = MEASURES[plan.experiment.measure]
    if measure.runs_alone and resources.num_jobs > 1:
        raise UserError(
            f"--jobs {resources.num_jobs}: {plan.name} measures times, which runs beside each "
            "other would falsify; --jobs 1 works"
        )
    if plan.experiment.axis is not None:
        check_can_draw()
    ensure_data(plan.scale, plan.data, progress=progress)
    mine = share_of(plan, share)
    for cell in mine:
        look_at(cell)  # refuses before anything starts what it cannot go on with
    runner = Runner(
        command=command,
        out=plan.out,
        measure=measure,
        measure_name=plan.experiment.measure,
        resources=resources,
        say=say,
    )
    failures = runner.run(mine)
    results = collect(plan)
    return Outcome(table=_write(results, called_as=called_as), results=results, failures=failures)


def share_of(plan: Plan, share: tuple[int, int]) -> Sequence[Cell]:
    """The runs of one of several machines.

    Args:
        plan: all runs.
        share: (i, n), i < n.
    """
    index, count = share
    # All columns of a row and seed: times are compared among them.
    rounds = list(dict.fromkeys((cell.row, cell.seed) for cell in plan.cells))
    mine = set(rounds[index::count])
    return [cell for cell in plan.cells if (cell.row, cell.seed) in mine]


def _write(results: Results, *, called_as: str) -> Path:
    plan = results.plan
    table, picture = plan.out / f"{plan.name}.md", plan.out / f"{plan.name}.png"
    plan.out.mkdir(parents=True, exist_ok=True)
    draws = plan.experiment.axis is not None and bool(results.values)
    if draws:
        draw(results, path=picture)
    values = json.dumps(as_json(results, command=called_as), indent=1, ensure_ascii=False)
    replace_file(plan.out / f"{plan.name}.json", f"{values}\n".encode())
    text = markdown(results, command=called_as, picture=picture.name if draws else None)
    replace_file(table, text.encode())
    return table

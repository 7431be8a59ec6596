"""The runs of an experiment: rows × columns × seeds, each an ordinary run with its settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from msam_scale.config import ConfigError, load_config
from msam_scale.config.keys import default_of
from msam_scale.reproduction.experiment import Column, Experiment, Row, Scale, ScaleName

# What reproduce sets itself: another value would make the table say something else.
_OWN_KEYS = (
    "run.",
    "data.train",
    "data.val",
    "objective.algorithm",
    "objective.phases",
    "checkpoint.resume",
    "monitor.jsonl",
)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        row: its name.
        column: its name.
        seed: of the run.
        run: the run's folder.
        config: the config's file.
        overrides: `section.key=value`, in order.
        num_ranks: W.
        metric: the row's.
    """

    row: str
    column: str
    seed: int
    run: Path
    config: Path
    overrides: tuple[str, ...]
    num_ranks: int
    metric: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the `msam-scale` command that does the run or goes on with it."""
        ranks = ("--nproc", str(self.num_ranks)) if self.num_ranks > 1 else ()
        return ("train", str(self.config), *ranks, *self.overrides)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        experiment: the table or figure.
        name: of the results' files.
        scale: the experiment at the size asked for, with only the rows asked for.
        scale_name: that size.
        seeds: of the runs.
        out: folder of everything.
        data: the folder of each data set.
        cells: the runs of all machines; seeds outermost, so that the first table comes early and
            what changes with time meets all columns alike.
    """

    experiment: Experiment
    name: str
    scale: Scale
    scale_name: ScaleName
    seeds: range
    out: Path
    data: Mapping[str, Path]
    cells: tuple[Cell, ...]


def make_plan(
    path: Path,
    experiment: Experiment,
    *,
    scale: ScaleName,
    out: Path,
    num_seeds: int,
    num_ranks: int | None = None,
    rows: Sequence[str] = (),
    data: Mapping[str, Path] | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Lays an experiment out into runs and checks their configs.

    Args:
        path: the experiment's file; configs are looked for relative to it.
        experiment: its content.
        scale: the size.
        out: folder of everything.
        num_seeds: runs of each row and column, with the seeds from 0 on.
        num_ranks: of each run; None: as the experiment says.
        rows: names of the rows to do; empty: all.
        data: folders of data sets that are not in `data/NAME`.
        overrides: further settings of all runs.

    Raises:
        UserError: no such scale, row or data set, a setting that reproduce makes itself, or a
            config that cannot be right.
    """
    if scale not in experiment.scales:
        raise UserError(f"{path}: has no scale {scale}; {', '.join(experiment.scales)} works")
    chosen = _with_rows(experiment.scales[scale], rows)
    of_rows = [one for row in chosen.rows.values() for one in row.overrides]
    of_columns = [one for column in chosen.columns.values() for one in column.overrides]
    decided = {one.partition("=")[0] for one in (*of_rows, *of_columns)}
    for override in overrides:
        key = override.partition("=")[0]
        if key.startswith(_OWN_KEYS) or key in decided:
            raise UserError(
                f"{override}: reproduce sets {key} itself; --out, --seeds, --data and other "
                "settings work"
            )
    folders = _data_folders(chosen, data or {})
    cells = tuple(
        _cell(
            path,
            chosen,
            row=row,
            column=column,
            seed=seed,
            out=out,
            data=folders[chosen.rows[row].dataset],
            num_ranks=num_ranks,
            overrides=overrides,
        )
        for seed in range(num_seeds)
        for row in chosen.rows
        for column in chosen.columns
    )
    _check(cells)
    return Plan(
        experiment=experiment,
        name=path.stem,
        scale=chosen,
        scale_name=scale,
        seeds=range(num_seeds),
        out=out,
        data=folders,
        cells=cells,
    )


def _with_rows(scale: Scale, names: Sequence[str]) -> Scale:
    for name in names:
        if name not in scale.rows:
            raise UserError(f"--rows: {name} is no row; {', '.join(scale.rows)} works")
    if not names:
        return scale
    rows = {name: row for name, row in scale.rows.items() if name in names}
    return scale.model_copy(update={"rows": rows})


def _data_folders(scale: Scale, given: Mapping[str, Path]) -> dict[str, Path]:
    used = list(dict.fromkeys(row.dataset for row in scale.rows.values()))
    for name in given:
        if name not in used:
            raise UserError(f"--data {name}=…: is no data set here; {', '.join(used)} works")
    return {name: given.get(name, Path("data") / name) for name in used}


def _cell(
    path: Path,
    scale: Scale,
    *,
    row: str,
    column: str,
    seed: int,
    out: Path,
    data: Path,
    num_ranks: int | None,
    overrides: Sequence[str],
) -> Cell:
    of_row, of_column = scale.rows[row], scale.columns[column]
    folder = out / scale.folder
    name = f"{row}-{column}-seed{seed}"
    settings = (
        *_algorithm(of_row, of_column),
        *scale.overrides,
        *of_row.overrides,
        *of_column.overrides,
        *overrides,
        *_without_effect(of_column),
        f"run.dir={json.dumps(str(folder))}",
        f"run.name={json.dumps(name)}",
        f"run.seed={seed}",
        f"data.train={json.dumps(str(data / 'train'))}",
        "checkpoint.resume=auto",
    )
    # An experiment may do without evaluation, which takes time.
    if "data.val=null" not in settings:
        settings = (*settings, f"data.val={json.dumps(str(data / 'val'))}")
    return Cell(
        row=row,
        column=column,
        seed=seed,
        run=folder / name,
        config=_config_of(path, of_row, of_column),
        overrides=settings,
        num_ranks=num_ranks or of_row.num_ranks,
        metric=of_row.metric,
    )


def _config_of(path: Path, row: Row, column: Column) -> Path:
    config = row.config.format(algorithm=column.algorithm)
    return Path(os.path.normpath(path.parent / config))


def _algorithm(row: Row, column: Column) -> tuple[str, ...]:
    if "{algorithm}" in row.config:
        return ()
    return (f"objective.algorithm={column.algorithm}",)


def _without_effect(column: Column) -> tuple[str, ...]:
    """Settings of the other algorithms, back at their defaults: they would be refused."""
    if any(override.startswith("objective.phases=") for override in column.overrides):
        return ()
    keys = {
        "vanilla": ("objective.rho", "objective.ascent", "objective.micro_batches"),
        "sam": ("objective.micro_batches",),
        "msam": (),
    }[column.algorithm]
    return tuple(f"{key}={json.dumps(default_of(key))}" for key in keys)


def _check(cells: Sequence[Cell]) -> None:
    for cell in cells:
        if cell.seed:
            continue  # the seed decides nothing about what is right
        if not cell.config.is_file():
            raise UserError(f"{cell.config}: no such config, which row {cell.row} names")
        try:
            load_config(
                cell.config,
                overrides=cell.overrides,
                world_size=cell.num_ranks,
                for_training=True,
            )
        except ConfigError as error:
            raise UserError(f"{cell.row}, {cell.column}: {error}") from error

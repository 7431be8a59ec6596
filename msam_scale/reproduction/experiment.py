"""What an experiment is: a data file with rows, columns and the paper's own values.

A new experiment is a new file in `configs/reproduce/`. Only one that measures something new needs
code: a measure, in `measures.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipelines.errors import UserError
from msam_scale.config.sections.method import Algorithm
from msam_scale.config.yaml_text import read_yaml
from msam_scale.reproduction.measures import MEASURES

ScaleName = Literal["laptop", "paper"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Text = Annotated[str, Field(min_length=1)]
Overrides = Annotated[tuple[Text, ...], Field(strict=False)]

# Beside the packages: configs are no part of them.
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PaperValue(_Part):
    """One entry of a table of the paper.

    Attributes:
        mean: as printed.
        std: the standard deviation as printed; None where the paper has none.
    """

    mean: float
    std: float | None = None


class PaperRow(_Part):
    """A row of a table of the paper.

    Attributes:
        title: what the paper calls it.
        values: by column.
    """

    title: Text
    values: dict[Name, PaperValue]


class Published(_Part):
    """What the paper has found.

    Attributes:
        source: where it stands, or why it is not here.
        rows: by a name that `Row.paper` refers to.
    """

    source: Text
    rows: dict[Name, PaperRow] = {}


class Dataset(_Part):
    """How a data set is made.

    Attributes:
        prepare: the words after `msam-scale data prepare` but for `--out`.
        is_embedded: a package has the data, so that nothing has to be fetched first.
    """

    prepare: Text
    is_embedded: bool = False


class Row(_Part):
    """What is trained, in several ways.

    Attributes:
        title: for the table.
        config: a config file, relative to the experiment's; may have `{algorithm}` in it.
        dataset: one of the scale's.
        overrides: `section.key=value`.
        metric: the figure of the validation lines of metrics.jsonl that counts.
        paper: the row of the paper's table that it is compared with.
        num_ranks: it runs on without `--nproc`.
    """

    title: Text
    config: Text
    dataset: Name
    overrides: Overrides = ()
    metric: Text = "accuracy"
    paper: Name | None = None
    num_ranks: Annotated[int, Field(ge=1)] = 1


class Column(_Part):
    """One way to train.

    Attributes:
        title: for the table.
        algorithm: fills `{algorithm}` in the row's config, or is set where there is none.
        overrides: `section.key=value`.
        at: its place on the picture's horizontal axis; None: a level line.
        series: the line of the picture that it belongs to; needed with `at`.
    """

    title: Text
    algorithm: Algorithm
    overrides: Overrides = ()
    at: float | None = None
    series: Text | None = None

    @model_validator(mode="after")
    def _points_are_on_a_line(self) -> Column:
        if (self.at is None) != (self.series is None):
            raise ValueError("at and series go together")
        return self


class Scale(_Part):
    """An experiment at one size.

    Attributes:
        folder: inside the output folder, of the runs; experiments with the same folder, rows and
            columns share their runs.
        datasets: by name.
        rows: by name.
        columns: by name.
        overrides: `section.key=value` of all runs.
        note: what a reader of the table has to know.
    """

    folder: Name = "runs"
    datasets: dict[Name, Dataset]
    rows: dict[Name, Row]
    columns: dict[Name, Column]
    overrides: Overrides = ()
    note: Text | None = None

    @model_validator(mode="after")
    def _datasets_are_declared(self) -> Scale:
        for name, row in self.rows.items():
            if row.dataset not in self.datasets:
                raise ValueError(f"rows.{name}.dataset: {row.dataset} is not in datasets")
        return self


class Experiment(_Part):
    """A table or figure.

    Attributes:
        title: of the result.
        measure: what is measured, one of `MEASURES`.
        axis: label of the picture's horizontal axis; None: no picture.
        published: the paper's values.
        scales: how it is done at each size.
    """

    title: Text
    measure: Text
    axis: Text | None = None
    published: Published
    scales: dict[ScaleName, Scale]

    @model_validator(mode="after")
    def _names_are_known(self) -> Experiment:
        if self.measure not in MEASURES:
            raise ValueError(f"measure: {self.measure} is none of {', '.join(MEASURES)}")
        base = MEASURES[self.measure].relative_to
        for scale in self.scales.values():
            if base is not None and base not in scale.columns:
                raise ValueError(f"columns: lack {base}, which {self.measure} divides by")
            for name, row in scale.rows.items():
                if row.paper is None:
                    continue
                if row.paper not in self.published.rows:
                    raise ValueError(f"rows.{name}.paper: {row.paper} is not in published.rows")
                if base is not None and base not in self.published.rows[row.paper].values:
                    raise ValueError(f"published.rows.{row.paper}: lacks {base}")
        return self


def experiment_names() -> list[str]:
    """The experiments that `configs/reproduce/` has."""
    return sorted(path.stem for path in (_CONFIGS / "reproduce").glob("*.yaml"))


def find_experiment(name: str) -> Path:
    """The file of an experiment.

    Args:
        name: one of `experiment_names()`, or the path of a file of one's own.

    Raises:
        UserError: there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _CONFIGS / "reproduce" / name
    path = path if path.suffix else path.with_suffix(".yaml")
    if not path.is_file():
        known = ", ".join(experiment_names())
        raise UserError(
            f"reproduce: {name!r} is no experiment; "
            f"{known or 'the path of a .yaml file, as in configs/reproduce of the sources,'} works"
        )
    # Shorter where it can be, as in the commands that a dry run prints.
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_experiment(path: Path) -> Experiment:
    """Reads and checks an experiment's file.

    Raises:
        UserError: it cannot be read, or is not what `Experiment` describes.
    """
    try:
        return Experiment.model_validate(read_yaml(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error

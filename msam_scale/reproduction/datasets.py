"""The data sets of an experiment: made where a package has them, asked for where not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipelines import prepare
from data_pipelines.errors import UserError
from data_pipelines.progress import Progress, no_progress
from msam_scale.reproduction.experiment import Dataset, Scale


def ensure_data(
    scale: Scale, folders: Mapping[str, Path], *, progress: Progress = no_progress
) -> None:
    """Makes the data sets that are embedded in packages, and insists on the others.

    Args:
        scale: names the data sets.
        folders: where each that is needed is, or is to be.
        progress: is told how far making one is.

    Raises:
        UserError: one is missing; says which command makes it.
    """
    missing = [name for name, folder in folders.items() if not (folder / "train").exists()]
    fetched = [name for name in missing if not scale.datasets[name].is_embedded]
    if fetched:
        raise UserError("; ".join(_advice(name, scale, folders[name]) for name in fetched))
    for name in missing:
        prepare(scale.datasets[name].prepare, out=folders[name], progress=progress)


def prepare_command(dataset: Dataset, folder: Path) -> str:
    """The command that makes a data set."""
    return f"msam-scale data prepare {dataset.prepare} --out {folder}"


def _advice(name: str, scale: Scale, folder: Path) -> str:
    rows = [row for row, content in scale.rows.items() if content.dataset != name]
    without = f"; --rows {' '.join(rows)} does without" if rows else ""
    return (
        f"{folder}: the data set {name} is not there; "
        f"{prepare_command(scale.datasets[name], folder)} makes it, or --data {name}=DIR says "
        f"where it is{without}"
    )

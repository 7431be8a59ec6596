"""Makes a data set, once."""

from dataclasses import dataclass
from pathlib import Path

import pydantic

from data_pipelines.durable_files import new_directory
from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.order.mixing import checked_seed
from data_pipelines.preparation.digits import DIGITS
from data_pipelines.preparation.recipe import DatasetRecipe
from data_pipelines.preparation.write_split import write_split
from data_pipelines.registry import lookup

DATASETS: dict[str, DatasetRecipe] = {recipe.name: recipe for recipe in (DIGITS,)}

_RECORD_FILE = "dataset.json"
_ELSEWHERE = "it is never overwritten: remove it or choose another folder"


@dataclass(frozen=True)
class PreparedDataset:
    """A data set on disk.

    Attributes:
        name: Which one.
        directory: Where it is.
        splits: The folder of each split, for `SampleIndex.open`.
        num_samples: How many samples each split has.
        already_there: It was made before; nothing was written.
    """

    name: str
    directory: Path
    splits: dict[str, Path]
    num_samples: dict[str, int]
    already_there: bool


class _Record(pydantic.BaseModel):
    """dataset.json: what the folder holds, and the fingerprint of each split."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    seed: int
    fingerprints: dict[str, str]


def prepare(name: str, *, out: str | Path, seed: int = 0) -> PreparedDataset:
    """Makes the data set `name` in the folder `out`, all at once or not at all.

    The folder gets one subfolder a split, with shards and index. If it holds the finished data set
    already, that is checked against its fingerprints and left as it is.

    Args:
        name: One of `DATASETS`.
        out: Folder to make; its parents are made too.
        seed: Of the split and the shuffle; in [0, 2**63).

    Raises:
        UserError: There is no such data set, the folder holds something else or a damaged data set,
            or it cannot be written.
    """
    recipe = lookup(DATASETS, name, kind="data set")
    checked_seed(seed)
    directory = Path(out).resolve()
    try:
        if directory.exists() and not _is_empty_folder(directory):
            return _found(recipe, directory, seed)
        with new_directory(directory) as partial:
            _write(recipe, partial, seed)
        return _described(directory, _read_record(directory), already_there=False)
    except OSError as error:
        raise UserError(f"{directory}: cannot be used: {error}") from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write(recipe: DatasetRecipe, directory: Path, seed: int) -> None:
    fingerprints = {
        split: write_split(
            source,
            directory=directory / split,
            split=split,
            num_classes=recipe.num_classes,
            samples_per_shard=recipe.samples_per_shard,
            seed=seed,
            created_by=f"data_pipelines: {recipe.name}, seed {seed}",
        ).fingerprint
        for split, source in recipe.splits(seed).items()
    }
    record = _Record(name=recipe.name, seed=seed, fingerprints=fingerprints)
    (directory / _RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _found(recipe: DatasetRecipe, directory: Path, seed: int) -> PreparedDataset:
    record = _read_record(directory)
    if (record.name, record.seed) != (recipe.name, seed):
        raise UserError(
            f"{directory}: holds the data set {record.name!r} made with seed {record.seed}, not "
            f"{recipe.name!r} with seed {seed}; {_ELSEWHERE}"
        )
    return _described(directory, record, already_there=True)


def _read_record(directory: Path) -> _Record:
    path = directory / _RECORD_FILE
    if not path.is_file():
        raise UserError(f"{directory}: holds something that is no prepared data set; {_ELSEWHERE}")
    try:
        return _Record.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: damaged; {_ELSEWHERE}") from error


def _described(directory: Path, record: _Record, *, already_there: bool) -> PreparedDataset:
    indexes = {split: SampleIndex.open(directory / split) for split in record.fingerprints}
    for split, index in indexes.items():
        index.verify_fingerprint()
        if index.fingerprint != record.fingerprints[split]:
            raise UserError(
                f"{index.directory}: not the split that {directory / _RECORD_FILE} records; "
                f"{_ELSEWHERE}"
            )
    return PreparedDataset(
        name=record.name,
        directory=directory,
        splits={split: index.directory for split, index in indexes.items()},
        num_samples={split: index.num_samples for split, index in indexes.items()},
        already_there=already_there,
    )

"""Makes a data set, once."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError, a_few
from data_pipelines.index import SampleIndex
from data_pipelines.order.mixing import checked_seed
from data_pipelines.preparation.datasets import DATASETS
from data_pipelines.preparation.options import checked_options, options_of_record
from data_pipelines.preparation.recipe import DatasetRecipe, PreparationOptions
from data_pipelines.preparation.record import (
    NEVER_OVERWRITTEN,
    RECORD_FILE,
    DatasetRecord,
    printable,
)
from data_pipelines.preparation.tokenised_texts import load_tokenizer
from data_pipelines.preparation.work_folder import WorkFolder
from data_pipelines.preparation.write_splits import write_splits
from data_pipelines.progress import Progress, no_progress
from data_pipelines.registry import lookup


@dataclass(frozen=True)
class PreparedDataset:
    """A data set on disk.

    Attributes:
        name: Which one.
        directory: Where it is.
        splits: The folder of each split, for `SampleIndex.open`.
        num_samples: How many samples each split has.
        class_counts: How many samples of each class each split has.
        class_names: What the classes are called, by number; None where the labels are the numbers.
        notes: What was left out, cut, or is not as published.
        already_there: It was made before; nothing was written.
    """

    name: str
    directory: Path
    splits: dict[str, Path]
    num_samples: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]
    already_there: bool


def prepare(
    name: str,
    *,
    out: str | Path,
    seed: int = 0,
    source: str | Path | None = None,
    val_fraction: float | None = None,
    tokenizer: str | None = None,
    max_length: int | None = None,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    num_workers: int = 1,
    restart: bool = False,
    progress: Progress = no_progress,
) -> PreparedDataset:
    """Makes the data set `name` in the folder `out`, which appears as a whole at the end.

    The folder gets one subfolder a split, with shards and index. If it holds the finished data set
    already, that is checked against its fingerprints and the input, and left as it is. What an
    interrupted or killed preparation has written is kept in a hidden folder beside `out`, and the
    next one with the same arguments continues it. The bytes depend on the input, the seed and
    the options alone, never on the number of workers or on interruptions.

    Args:
        name: One of `DATASETS`.
        out: Folder to make; its parents are made too.
        seed: Of the split and the shuffle; in [0, 2**63).
        source: File or folder to make it from, for data sets that need one.
        val_fraction: Share of the samples for validation, in [0, 1), for input that is not split
            itself; 0 makes no validation split.
        tokenizer: For text: name on the Hugging Face hub, or folder, of a tokenizer.
        max_length: For text: longer texts are cut to so many tokens; 128 by default.
        text_columns: For tables: the column of the text, or the two of a pair of texts; by name, or
            counted from "1" in files without a header.
        label_column: For tables: the column of the label, likewise.
        num_workers: Processes to use.
        restart: Begin anew, even when there is unfinished work.
        progress: Is told how far it is.

    Raises:
        UserError: There is no such data set, an option is missing or has no effect, the input is
            damaged or not whole, the folder holds something else, a damaged data set or one made
            from another input, or it cannot be written.
    """
    recipe = lookup(DATASETS, name, kind="data set")
    checked_seed(seed)
    directory = _resolved("out", out)
    options = PreparationOptions(
        seed=seed,
        source=None if source is None else _resolved("source", source),
        val_fraction=val_fraction,
        tokenizer=tokenizer,
        max_length=max_length,
        text_columns=text_columns,
        label_column=label_column,
    )
    checked_options(recipe, options)
    try:
        if _holds_something(directory):
            return _found(recipe, directory, options, progress=progress)
        work = WorkFolder(directory)
        with work.opened(restart=restart):
            if _holds_something(directory):  # another process was quicker
                return _found(recipe, directory, options, progress=progress)
            _write(recipe, work, options, num_workers=num_workers, progress=progress)
            work.finish()
        return _described(directory, DatasetRecord.read(directory), already_there=False)
    except OSError as error:
        raise _unusable(error, directory=directory, source=options.source) from error


def _resolved(what: str, path: str | Path) -> Path:
    try:
        return Path(path).resolve()
    # A link to itself is a RuntimeError, a zero byte a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{what}: {path}: cannot be used: {error}") from error


def _unusable(error: OSError, *, directory: Path, source: Path | None) -> UserError:
    """Returns what to say: the trouble may be with the input as well as with the output."""
    if source is not None and isinstance(error.filename, str):
        path = Path(error.filename)
        work = WorkFolder(directory).root
        is_output = path.is_relative_to(directory) or path.is_relative_to(work)
        if path.is_relative_to(source) and not is_output:
            return UserError(f"source: {path}: cannot be read: {error.strerror}")
    return UserError(f"{directory}: cannot be used: {error}")


def _holds_something(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _write(
    recipe: DatasetRecipe,
    work: WorkFolder,
    options: PreparationOptions,
    *,
    num_workers: int,
    progress: Progress,
) -> None:
    dataset = recipe.open(options, work.scratch, progress)
    made_from = options_of_record(recipe, options)
    work.check_plan(
        {
            "data set": recipe.name,
            "seed": options.seed,
            "options": made_from,
            "input": dict(dataset.sources),
            "tokenizer": dataset.tokenizer and dataset.tokenizer.model_dump(),
            "number of samples": {
                name: [split.num_samples, split.samples_per_shard]
                for name, split in dataset.splits.items()
            },
        }
    )
    fingerprints = write_splits(
        dataset,
        work=work,
        seed=options.seed,
        created_by=f"data_pipelines: {recipe.name}, seed {options.seed}",
        num_workers=num_workers,
        progress=progress,
    )
    DatasetRecord(
        name=recipe.name,
        seed=options.seed,
        fingerprints=fingerprints,
        options=made_from,
        class_names=dataset.class_names,
        sources=_printable_sources(dataset.sources),
        notes=tuple(map(printable, dataset.notes)),
        tokenizer=dataset.tokenizer,
    ).write(work.directory)


def _printable_sources(sources: Mapping[str, str]) -> dict[str, str]:
    return {printable(name): text for name, text in sources.items()}


def _found(
    recipe: DatasetRecipe, directory: Path, options: PreparationOptions, *, progress: Progress
) -> PreparedDataset:
    record = DatasetRecord.read(directory)
    if (record.name, record.seed) != (recipe.name, options.seed):
        raise UserError(
            f"{directory}: holds the data set {record.name!r} made with seed {record.seed}, not "
            f"{recipe.name!r} with seed {options.seed}; {NEVER_OVERWRITTEN}"
        )
    asked = options_of_record(recipe, options)
    changed = [
        f"{key} {record.options.get(key)!r} instead of {asked.get(key)!r}"
        for key in sorted({*record.options, *asked})
        if record.options.get(key) != asked.get(key)
    ]
    if changed:
        raise UserError(
            f"{directory}: holds the data set {record.name!r} made with {a_few(changed)}; "
            f"{NEVER_OVERWRITTEN}"
        )
    _check_same_input(recipe, directory, record, options, progress=progress)
    return _described(directory, record, already_there=True)


def _check_same_input(
    recipe: DatasetRecipe,
    directory: Path,
    record: DatasetRecord,
    options: PreparationOptions,
    *,
    progress: Progress,
) -> None:
    """Compares the input with what the finished data set was made from, as far as that is quick."""
    if recipe.describe is not None:
        with tempfile.TemporaryDirectory() as scratch:
            sources = _printable_sources(recipe.describe(options, Path(scratch), progress))
        changed = [
            name
            for name in sorted({*sources, *record.sources})
            if name not in sources or not record.sources.get(name, "").startswith(sources[name])
        ]
        if changed:
            raise UserError(
                f"{directory}: holds the data set {record.name!r} made from another input: "
                f"{options.source} differs in {a_few(changed)}; {NEVER_OVERWRITTEN}"
            )
    if record.tokenizer is not None and options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer, max_length=record.tokenizer.max_length)
        if tokenizer.record.files != record.tokenizer.files:
            raise UserError(
                f"{directory}: holds the data set {record.name!r} made with another tokenizer than "
                f"{options.tokenizer} is now; {NEVER_OVERWRITTEN}"
            )


def _described(directory: Path, record: DatasetRecord, *, already_there: bool) -> PreparedDataset:
    indexes = {split: SampleIndex.open(directory / split) for split in record.fingerprints}
    for split, index in indexes.items():
        index.verify_fingerprint()
        if index.fingerprint != record.fingerprints[split]:
            raise UserError(
                f"{index.directory}: not the split that {directory / RECORD_FILE} records; "
                f"{NEVER_OVERWRITTEN}"
            )
    return PreparedDataset(
        name=record.name,
        directory=directory,
        splits={split: index.directory for split, index in indexes.items()},
        num_samples={split: index.num_samples for split, index in indexes.items()},
        class_counts={split: index.meta.class_counts for split, index in indexes.items()},
        class_names=record.class_names,
        notes=record.notes,
        already_there=already_there,
    )

"""`table`: texts in any TSV or CSV files."""

from dataclasses import replace
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.recipe import DatasetRecipe, OpenedDataset, PreparationOptions
from data_pipelines.preparation.text_classes import are_numbers, class_names, class_numbers
from data_pipelines.preparation.text_datasets import describe_texts, open_texts
from data_pipelines.preparation.text_rows import TextFile
from data_pipelines.progress import Progress

_ENDINGS = (".tsv", ".csv")
_VAL_NAMES = ("val", "dev", "valid", "validation")


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    files = _find_files(options)
    classes = class_numbers([file for of_split in files.values() for file in of_split])
    if not classes:
        raise UserError(f"{options.source}: holds no rows")
    return open_texts(
        files,
        classes=classes,
        class_names=class_names(classes),
        options=options,
        scratch=scratch,
        progress=progress,
    )


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    return describe_texts(_find_files(options))


def _find_files(options: PreparationOptions) -> dict[str, list[TextFile]]:
    assert options.text_columns is not None, "the recipe requires it"
    assert options.label_column is not None, "the recipe requires it"
    paths = _find_paths(options)
    columns = TextFile(
        paths["train"], text_columns=options.text_columns, label_column=options.label_column
    )
    columns = _counted_columns(columns) or columns
    return {split: [replace(columns, path=path)] for split, path in paths.items()}


def _counted_columns(named: TextFile) -> TextFile | None:
    """Returns the columns by their places if they are given as numbers, which no header has."""
    columns = [str(column) for column in (*named.text_columns, named.label_column)]
    first_row = named.first_row()
    if not are_numbers(columns) or set(columns) <= set(first_row):
        return None
    for column in columns:
        if not 1 <= int(column) <= len(first_row):
            raise UserError(
                f"{named.path}: column {column}: the first line has the columns 1 … "
                f"{len(first_row)}"
            )
    *texts, label = (int(column) - 1 for column in columns)
    return replace(named, text_columns=tuple(texts), label_column=label, num_columns=len(first_row))


def _find_paths(options: PreparationOptions) -> dict[str, Path]:
    source = options.source
    assert source is not None, "the recipe requires it"
    if source.is_file():
        if source.suffix.lower() not in _ENDINGS:
            raise UserError(f"source: {source} ends in none of {', '.join(_ENDINGS)}")
        found = {"train": source}
    else:
        found = {
            split: path
            for split, names in (("train", ("train",)), ("val", _VAL_NAMES))
            if (path := _first_file(source, names)) is not None
        }
        if "train" not in found:
            raise UserError(f"source: {source} holds no train.tsv or train.csv")
    if "val" in found and options.val_fraction is not None:
        raise UserError(
            f"val-fraction: without effect, {found['val']} is the validation split; leave it out"
        )
    if "val" not in found and options.val_fraction is None:
        raise UserError(
            f"{found['train']}: has no validation file beside it; give val-fraction, such as 0.1, "
            "or 0 for none"
        )
    return found


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (folder / f"{name}{ending}" for name in names for ending in _ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


TABLE = DatasetRecipe(
    name="table",
    description="texts, or pairs of texts, and their labels from any TSV or CSV",
    open=_open,
    describe=_describe,
    source="a .tsv or .csv file, or a folder with train.tsv and val.tsv (or dev.tsv, or .csv)",
    required=frozenset({"tokenizer", "text_columns", "label_column"}),
    optional=frozenset({"max_length", "val_fraction"}),
)

"""`table`: texts in any TSV or CSV files with named columns."""

from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.recipe import DatasetRecipe, OpenedDataset, PreparationOptions
from data_pipelines.preparation.text_datasets import open_texts
from data_pipelines.preparation.text_rows import TextFile, class_numbers
from data_pipelines.progress import Progress

_ENDINGS = (".tsv", ".csv")
_VAL_NAMES = ("val", "dev", "valid", "validation")


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    paths = _find_files(options)
    assert options.text_columns is not None, "the recipe requires it"
    assert options.label_column is not None, "the recipe requires it"
    files = {
        split: [
            TextFile(path, text_columns=options.text_columns, label_column=options.label_column)
        ]
        for split, path in paths.items()
    }
    classes = class_numbers([file for of_split in files.values() for file in of_split])
    if not classes:
        raise UserError(f"{options.source}: holds no rows")
    are_numbers = all(name.isascii() and name.isdigit() for name in classes)
    return open_texts(
        files,
        classes=classes,
        class_names=None if are_numbers else tuple(classes),
        options=options,
        scratch=scratch,
        progress=progress,
    )


def _find_files(options: PreparationOptions) -> dict[str, Path]:
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
    description="texts, or pairs of texts, and their labels from any TSV or CSV with a header",
    open=_open,
    source="a .tsv or .csv file, or a folder with train.tsv and val.tsv (or dev.tsv, or .csv)",
    required=frozenset({"tokenizer", "text_columns", "label_column"}),
    optional=frozenset({"max_length", "val_fraction"}),
)

"""`table`: texts in any TSV or CSV files."""

from dataclasses import replace
from pathlib import Path

from data_pipelines.errors import UserError, a_few
from data_pipelines.preparation.recipe import DatasetRecipe, OpenedDataset, PreparationOptions
from data_pipelines.preparation.text_classes import are_numbers, class_names, class_numbers
from data_pipelines.preparation.text_datasets import describe_texts, open_texts
from data_pipelines.preparation.text_rows import TextFile
from data_pipelines.progress import Progress
from data_pipelines.sources.file_names import is_no_data, split_of

_ENDINGS = (".tsv", ".csv")


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    files, notes = _find_files(options)
    classes = class_numbers([file for of_split in files.values() for file in of_split])
    if not classes:
        raise UserError(f"{options.source}: holds no rows")
    dataset = open_texts(
        files,
        classes=classes,
        class_names=class_names(classes),
        options=options,
        scratch=scratch,
        progress=progress,
    )
    return replace(dataset, notes=(*notes, *dataset.notes))


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    return describe_texts(_find_files(options)[0])


def _find_files(options: PreparationOptions) -> tuple[dict[str, list[TextFile]], list[str]]:
    """Finds the files of each split, and says what else there is."""
    assert options.text_columns is not None, "the recipe requires it"
    assert options.label_column is not None, "the recipe requires it"
    paths, notes = _find_paths(options)
    columns = TextFile(
        paths["train"], text_columns=options.text_columns, label_column=options.label_column
    )
    columns = _counted_columns(columns) or columns
    files = {split: [replace(columns, path=path)] for split, path in paths.items()}
    return files, notes


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


def _find_paths(options: PreparationOptions) -> tuple[dict[str, Path], list[str]]:
    source = options.source
    assert source is not None, "the recipe requires it"
    if source.is_file():
        if source.suffix.lower() not in _ENDINGS:
            raise UserError(f"source: {source} ends in none of {', '.join(_ENDINGS)}")
        found: dict[str, Path] = {"train": source}
        notes: list[str] = []
    else:
        found, notes = _files_of_splits(source)
    if "val" in found and options.val_fraction is not None:
        raise UserError(
            f"val-fraction: without effect, {found['val']} is the validation split; leave it out"
        )
    if "val" not in found and options.val_fraction is None:
        raise UserError(
            f"{found['train']}: has no validation file beside it; give val-fraction, such as 0.1, "
            "or 0 for none"
        )
    return found, notes


def _files_of_splits(folder: Path) -> tuple[dict[str, Path], list[str]]:
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _ENDINGS or is_no_data(path.name) or not path.is_file():
            continue
        split = split_of(path.stem)
        if split in found:
            raise UserError(
                f"source: {found[split]} and {path.name} are both called after the split {split}; "
                "move one of them away"
            )
        if split in ("train", "val"):
            found[split] = path
        else:  # also those of tests, which often have no labels
            left_out.append(path.name)
    if "train" not in found:
        raise UserError(f"source: {folder} holds no train.tsv or train.csv")
    return found, [f"{folder}: left out: {a_few(left_out)}"] if left_out else []


TABLE = DatasetRecipe(
    name="table",
    description="texts, or pairs of texts, and their labels from any TSV or CSV",
    open=_open,
    describe=_describe,
    source="a .tsv or .csv file, or a folder with train.tsv and val.tsv (or dev.tsv, or .csv)",
    required=frozenset({"tokenizer", "text_columns", "label_column"}),
    optional=frozenset({"max_length", "val_fraction"}),
)

"""From text files to a data set of tokens."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines.errors import a_few
from data_pipelines.preparation.options import DEFAULT_MAX_LENGTH
from data_pipelines.preparation.recipe import (
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    fraction_splits,
    whole_split,
)
from data_pipelines.preparation.staging import described_file, staged, unchanged_file
from data_pipelines.preparation.text_rows import TextFile
from data_pipelines.preparation.tokenised_texts import (
    TokenisedTexts,
    Tokenizer,
    load_tokenizer,
    tokenise,
)
from data_pipelines.progress import Progress

_COUNTS_FILE = "counts.json"


def open_texts(
    files: Mapping[str, Sequence[TextFile]],
    *,
    classes: Mapping[str, int],
    class_names: tuple[str, ...] | None,
    options: PreparationOptions,
    scratch: Path,
    progress: Progress,
    default_val_fraction: float = 0.0,
) -> OpenedDataset:
    """Tokenises text files, or finds that it was done.

    Args:
        files: The files of each split, read one after the other. One split alone is cut by
            `options.val_fraction`.
        classes: The class number by the label as it is written.
        class_names: What the classes are called; None when they have no names.
        options: Tokenizer, greatest length, seed and fraction.
        scratch: Where tokens are kept.
        progress: Is told how far it is.
        default_val_fraction: Cuts a single split where `options` has no fraction.

    Raises:
        UserError: The tokenizer cannot be loaded, the greatest length is too small, a file cannot
            be read, or a label is unknown.
    """
    assert options.tokenizer is not None, "the recipes require it"
    tokenizer = load_tokenizer(
        options.tokenizer, max_length=options.max_length or DEFAULT_MAX_LENGTH
    )
    texts: dict[str, TokenisedTexts] = {}
    num_texts = max(len(file.text_columns) for each in files.values() for file in each)
    notes = tokenizer.check_max_length(num_texts=num_texts)
    for split, of_split in files.items():
        texts[split], split_notes = _tokenised(
            split,
            of_split,
            classes=classes,
            tokenizer=tokenizer,
            scratch=scratch,
            progress=progress,
        )
        notes += split_notes
    return OpenedDataset(
        splits=_splits(texts, options, default_val_fraction=default_val_fraction),
        num_classes=max(classes.values()) + 1,
        class_names=class_names,
        sources=describe_texts(files),
        notes=tuple(notes),
        tokenizer=tokenizer.record,
    )


def describe_texts(files: Mapping[str, Sequence[TextFile]]) -> dict[str, str]:
    """Returns the `OpenedDataset.sources` of `open_texts`."""
    return {file.path.name: described_file(file.path) for each in files.values() for file in each}


def _splits(
    texts: Mapping[str, TokenisedTexts],
    options: PreparationOptions,
    *,
    default_val_fraction: float,
) -> dict[str, SplitSource]:
    if len(texts) == 1:
        (only,) = texts.values()
        return fraction_splits(
            only,
            num_samples=len(only),
            num_bytes=only.num_bytes,
            seed=options.seed,
            val_fraction=default_val_fraction
            if options.val_fraction is None
            else options.val_fraction,
        )
    return {
        split: whole_split(
            each, num_samples=len(each), num_bytes=each.num_bytes, name=split, seed=options.seed
        )
        for split, each in texts.items()
    }


def _tokenised(
    split: str,
    files: Sequence[TextFile],
    *,
    classes: Mapping[str, int],
    tokenizer: Tokenizer,
    scratch: Path,
    progress: Progress,
) -> tuple[TokenisedTexts, list[str]]:
    name = "+".join(file.path.name for file in files)
    folder = staged(
        scratch / f"{split}-tokens",
        made_from={
            "files": [unchanged_file(file.path) for file in files],
            "columns": repr(files),
            "classes": dict(classes),
            "tokenizer": tokenizer.record.model_dump(),
        },
        make=functools.partial(
            _tokenise_files,
            files,
            name=name,
            classes=classes,
            tokenizer=tokenizer,
            progress=progress,
        ),
    )
    counts = json.loads((folder / _COUNTS_FILE).read_text(encoding="utf-8"))
    texts = TokenisedTexts(folder, num_rows=len(tokenizer.record.rows), file_name=name)
    notes = []
    if counts["cut"]:
        notes.append(
            f"{name}: {counts['cut']} of {len(texts)} texts were cut to "
            f"{tokenizer.record.max_length} tokens"
        )
    if counts["skipped"]:
        notes.append(
            f"{name}: left out {len(counts['skipped'])} broken rows, in the lines "
            f"{a_few(counts['skipped'], most=20)}"
        )
    return texts, notes


def _tokenise_files(
    files: Sequence[TextFile],
    folder: Path,
    *,
    name: str,
    classes: Mapping[str, int],
    tokenizer: Tokenizer,
    progress: Progress,
) -> None:
    skipped: list[int] = []
    num_cut = tokenise(
        folder,
        rows=(row for file in files for row in file.rows(skipped=skipped)),
        classes=classes,
        file_name=name,
        tokenizer=tokenizer,
        progress=progress,
    )
    counts = {"cut": num_cut, "skipped": skipped}
    (folder / _COUNTS_FILE).write_text(json.dumps(counts), encoding="utf-8")

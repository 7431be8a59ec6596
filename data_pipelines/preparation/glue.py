"""`cola`, `mrpc`, `sst2` and `qqp`: classification tasks of GLUE, from their published TSV files.

See https://gluebenchmark.com/tasks. The published test sets have no labels, so `val` is GLUE's
development set.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.recipe import DatasetRecipe, OpenedDataset, PreparationOptions
from data_pipelines.preparation.text_datasets import describe_texts, open_texts
from data_pipelines.preparation.text_rows import TextFile, ends_with_line_break
from data_pipelines.progress import Progress

_CLASSES = {"0": 0, "1": 1}


@dataclass(frozen=True)
class _Layout:
    """One way a task is published.

    Attributes:
        files: Names of the files of each split, which are read one after the other.
        columns: Which columns of them are read; the path is filled in.
        is_glue: Whether it has the rows that GLUE has, and not others.
    """

    files: Mapping[str, tuple[str, ...]]
    columns: TextFile
    is_glue: bool = True


@dataclass(frozen=True)
class _Task:
    """A task of GLUE.

    Attributes:
        class_names: Of the labels 0 and 1.
        layouts: Ways it is published; the first whose files are there is used.
        num_rows: How many rows GLUE has, by split.
    """

    class_names: tuple[str, str]
    layouts: Sequence[_Layout]
    num_rows: Mapping[str, int]


_GLUE_FILES = {"train": ("train.tsv",), "val": ("dev.tsv",)}
_NO_PATH = Path()

# Source, label, the author's own mark, sentence; without a header.
_COLA_COLUMNS = TextFile(_NO_PATH, text_columns=(3,), label_column=1, num_columns=4)
_COLA = _Task(
    class_names=("unacceptable", "acceptable"),
    layouts=(
        _Layout(_GLUE_FILES, _COLA_COLUMNS),
        # The corpus as its authors publish it: GLUE's development set is both parts together.
        _Layout(
            {
                "train": ("in_domain_train.tsv",),
                "val": ("in_domain_dev.tsv", "out_of_domain_dev.tsv"),
            },
            _COLA_COLUMNS,
        ),
    ),
    num_rows={"train": 8551, "val": 1043},
)

_MRPC = _Task(
    class_names=("not_equivalent", "equivalent"),
    layouts=(
        _Layout(
            _GLUE_FILES,
            TextFile(
                _NO_PATH,
                text_columns=("#1 String", "#2 String"),
                label_column="Quality",
                header=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ),
        ),
    ),
    num_rows={"train": 3668, "val": 408},
)

_SST2 = _Task(
    class_names=("negative", "positive"),
    layouts=(
        _Layout(
            _GLUE_FILES,
            TextFile(
                _NO_PATH,
                text_columns=("sentence",),
                label_column="label",
                header=("sentence", "label"),
            ),
        ),
        # The whole sentences of the treebank, as they often are passed on: without a header.
        _Layout(
            _GLUE_FILES,
            TextFile(_NO_PATH, text_columns=(0,), label_column=1, num_columns=2),
            is_glue=False,
        ),
    ),
    num_rows={"train": 67349, "val": 872},
)

_QQP = _Task(
    class_names=("not_duplicate", "duplicate"),
    layouts=(
        _Layout(
            _GLUE_FILES,
            TextFile(
                _NO_PATH,
                text_columns=("question1", "question2"),
                label_column="is_duplicate",
                header=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
                # A few questions of the published file contain line breaks, which cuts their rows
                # in two; every reader of GLUE leaves these out.
                skips_broken_rows=True,
            ),
        ),
    ),
    num_rows={"train": 363846, "val": 40430},
)


def _open(
    options: PreparationOptions, scratch: Path, progress: Progress, *, task: _Task
) -> OpenedDataset:
    layout, files = _find_files(options, task)
    dataset = open_texts(
        files,
        classes=_CLASSES,
        class_names=task.class_names,
        options=options,
        scratch=scratch,
        progress=progress,
    )
    notes = list(dataset.notes)
    for split, num_rows in task.num_rows.items():
        found = dataset.splits[split].num_samples
        if found == num_rows:
            continue
        notes.append(f"{split}: {found} rows, not the {num_rows} of GLUE")
        for path in (file.path for file in files[split]):
            if layout.is_glue and not ends_with_line_break(path):
                raise UserError(
                    f"{path}: cut short: ends within a line, and {split} has {found} rows instead "
                    f"of {num_rows}"
                )
    return replace(dataset, notes=tuple(notes))


def _describe(
    options: PreparationOptions, scratch: Path, progress: Progress, *, task: _Task
) -> dict[str, str]:
    return describe_texts(_find_files(options, task)[1])


def _find_files(
    options: PreparationOptions, task: _Task
) -> tuple[_Layout, dict[str, list[TextFile]]]:
    source = options.source
    assert source is not None, "the recipe requires it"
    layout = _find_layout(source, task)
    return layout, {
        split: [replace(layout.columns, path=source / name) for name in names]
        for split, names in layout.files.items()
    }


def _find_layout(source: Path, task: _Task) -> _Layout:
    there = [layout for layout in task.layouts if _has_files(source, layout)]
    if not there:
        layouts = [_names(layout) for layout in task.layouts]
        raise UserError(f"{source}: holds none of: {'; '.join(dict.fromkeys(layouts))}")
    # Layouts with the same files are told apart by the header.
    return next((each for each in there if _fits_header(source, each)), there[0])


def _has_files(source: Path, layout: _Layout) -> bool:
    return all((source / name).is_file() for names in layout.files.values() for name in names)


def _fits_header(source: Path, layout: _Layout) -> bool:
    expected = layout.columns.header
    with (source / layout.files["train"][0]).open("rb") as file:
        first = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    if expected is not None:
        return tuple(first) == expected
    return len(first) == layout.columns.num_columns


def _names(layout: _Layout) -> str:
    return ", ".join(name for names in layout.files.values() for name in names)


def _recipe(name: str, description: str, task: _Task) -> DatasetRecipe:
    layouts = dict.fromkeys(_names(layout) for layout in task.layouts)
    return DatasetRecipe(
        name=name,
        description=f"{description}; the development set becomes val",
        open=functools.partial(_open, task=task),
        describe=functools.partial(_describe, task=task),
        source_is_folder=True,
        source=f"the folder with {'; or '.join(layouts)}",
        required=frozenset({"tokenizer"}),
        optional=frozenset({"max_length"}),
    )


COLA = _recipe("cola", "GLUE CoLA: is a sentence grammatical?", _COLA)
MRPC = _recipe("mrpc", "GLUE MRPC: do two sentences say the same?", _MRPC)
SST2 = _recipe("sst2", "GLUE SST-2: is a film review positive?", _SST2)
QQP = _recipe("qqp", "GLUE QQP: do two questions ask the same?", _QQP)

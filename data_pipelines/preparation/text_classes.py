"""Class numbers of the labels in TSV and CSV files, and whether their labels can be believed."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UserError
from data_pipelines.preparation.text_rows import TextFile, ends_with_line_break

_MAX_CLASSES = 100_000
_INTEGER = re.compile(r"[+-]?[0-9]+")


class _Place(NamedTuple):
    """Where a label was seen first."""

    path: Path
    line: int


def class_numbers(files: Sequence[TextFile]) -> dict[str, int]:
    """Returns the class number by the label as it is written in any of the files.

    Decimal digits are class numbers already; other labels are numbered in their sorted order.

    Raises:
        UserError: There are more classes than a column of labels would have, labels are partly
            numbers and partly not, a file is cut short, or see `TextFile.rows`.
    """
    counts: Counter[str] = Counter()
    first_seen: dict[str, _Place] = {}
    last_labels: list[str | None] = []
    for file in files:
        last_label = None
        for row in file.rows():
            last_label = row.label
            counts[row.label] += 1
            first_seen.setdefault(row.label, _Place(file.path, row.line))
            if len(counts) > _MAX_CLASSES:
                raise UserError(
                    f"{file.path}: column {file.label_column!r} has more than {_MAX_CLASSES} "
                    "different values: no column of classes"
                )
        last_labels.append(last_label)
    for file, last_label in zip(files, last_labels, strict=True):
        if last_label is not None:
            _check_not_cut(file, last_label, counts)
    _check_no_header(files, counts, first_seen)
    _check_one_kind(counts, first_seen)
    if are_numbers(counts):
        return _numbers(first_seen)
    return {name: number for number, name in enumerate(sorted(counts))}


def are_numbers(labels: Iterable[str]) -> bool:
    """Returns whether labels are class numbers themselves."""
    return all(label.isascii() and label.isdigit() for label in labels)


def _numbers(first_seen: dict[str, _Place]) -> dict[str, int]:
    numbers = {name: int(name) for name in sorted(first_seen)}
    for name, number in numbers.items():
        if number >= _MAX_CLASSES:
            place = first_seen[name]
            raise UserError(
                f"{place.path}: line {place.line}: {name} is no class number: those are below "
                f"{_MAX_CLASSES}"
            )
    return numbers


def _check_not_cut(file: TextFile, last_label: str, counts: Counter[str]) -> None:
    """Refuses a file that ends within a field that is read, unless that field is whole."""
    column = file.last_column()
    if column not in (*file.text_columns, file.label_column) or ends_with_line_break(file.path):
        return
    # Cutting a label gives one that is not used elsewhere, or the beginning of another one.
    begins_another = any(label != last_label and label.startswith(last_label) for label in counts)
    if column == file.label_column and counts[last_label] > 1 and not begins_another:
        return
    raise UserError(
        f"{file.path}: ends within a line, so its last row may be cut short; if it is whole, add a "
        "line break at its end"
    )


def _check_one_kind(counts: Counter[str], first_seen: dict[str, _Place]) -> None:
    """Refuses a few words among numbers, or numbers among words: they would shift all classes."""
    numbers = [label for label in counts if are_numbers([label])]
    words = [label for label in counts if not _INTEGER.fullmatch(label)]
    if not numbers or not words:
        return
    rare, usual = sorted((words, numbers), key=lambda labels: sum(counts[each] for each in labels))
    place, other = first_seen[rare[0]], first_seen[usual[0]]
    raise UserError(
        f"{place.path}: line {place.line}: the label is {rare[0]!r}, but {usual[0]!r} in line "
        f"{other.line} of {other.path.name}: labels are either all numbers or all names"
    )


def _check_no_header(
    files: Sequence[TextFile], counts: Counter[str], first_seen: dict[str, _Place]
) -> None:
    """Refuses a header that is taken for a row, in files whose columns are counted."""
    first = {label for label, place in first_seen.items() if place.line == 1}
    is_header = (
        all(file.num_columns is not None for file in files)
        and len(first) == 1
        and not are_numbers(first)
        and all((count == len(files)) == (label in first) for label, count in counts.items())
        and min(counts.values()) == len(files)
        and len(counts) > 1
    )
    if is_header:
        raise UserError(
            f"{files[0].path}: line 1: its label {first.pop()!r} is in no other line: if it is a "
            "header, name the columns instead of counting them"
        )

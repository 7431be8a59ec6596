"""Class numbers of the labels in TSV and CSV files, and whether their labels can be believed."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UserError, a_few
from data_pipelines.preparation.text_rows import TextFile, ends_with_line_break

_MAX_CLASSES = 100_000
_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE
)
# More values, or fewer rows for each, are scores: a step on a scale of stars has many.
_MOST_FRACTIONS = 20
# Of fewer rows it says nothing that no label comes twice.
_FEWEST_ROWS_TO_JUDGE = 20


class _Place(NamedTuple):
    """Where a label was seen first."""

    path: Path
    line: int


def class_numbers(files: Sequence[TextFile]) -> dict[str, int]:
    """Returns the class number by the label as it is written in any of the files.

    Whole numbers from 0 on are class numbers already, however they are written (`2`, `2.0`); other
    numbers are numbered by their value, and words in their sorted order.

    Raises:
        UserError: There are more classes than a column of labels would have, labels are partly
            numbers and partly not, numbers are negative, none (`nan`) or scores, a file is cut
            short, or see `TextFile.rows`.
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
    if counts.total() == len(counts) >= _FEWEST_ROWS_TO_JUDGE:
        raise UserError(
            f"{files[0].path}: column {files[0].label_column!r}: every row has a label of its own "
            f"({a_few(counts)}): no column of classes"
        )
    if all(map(_is_number, counts)):
        return _numbers(counts, first_seen)
    return {name: number for number, name in enumerate(sorted(counts))}


def class_names(classes: Mapping[str, int]) -> tuple[str, ...] | None:
    """Returns what classes are called, by number; None when labels are the numbers themselves."""
    if are_numbers(classes):
        return None
    names = {number: label for label, number in reversed(list(classes.items()))}
    return tuple(names.get(number, str(number)) for number in range(max(names) + 1))


def are_numbers(labels: Iterable[str]) -> bool:
    """Returns whether labels are class numbers as they are written here."""
    return all(label.isascii() and label.isdigit() for label in labels)


def _is_number(label: str) -> bool:
    return _NUMBER.fullmatch(label) is not None


def _numbers(counts: Counter[str], first_seen: dict[str, _Place]) -> dict[str, int]:
    values = {label: float(label) for label in counts}
    seen = sorted(values, key=lambda label: (math.isnan(values[label]), values[label], label))
    for label, value in values.items():
        if not 0 <= value < _MAX_CLASSES:
            place = first_seen[label]
            raise UserError(
                f"{place.path}: line {place.line}: {label} is no class number: those are whole "
                f"numbers from 0 on, below {_MAX_CLASSES} (seen: {a_few(seen)}); leave out rows "
                "without a label, or give the classes names"
            )
    if all(value.is_integer() for value in values.values()):
        return {label: int(values[label]) for label in seen}
    steps = sorted(set(values.values()))
    if len(steps) > min(_MOST_FRACTIONS, counts.total() // 2):
        place = first_seen[seen[0]]
        raise UserError(
            f"{place.path}: {len(steps)} different numbers with fractions in {counts.total()} rows "
            f"(seen: {a_few(seen)}) are scores and no classes; write the classes as 0, 1, … or as "
            "names"
        )
    return {label: steps.index(values[label]) for label in seen}


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
    numbers = [label for label in counts if _is_number(label)]
    words = [label for label in counts if not _is_number(label)]
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
        and not any(map(_is_number, first))
        and all((count == len(files)) == (label in first) for label, count in counts.items())
        and min(counts.values()) == len(files)
        and len(counts) > 1
    )
    if is_header:
        raise UserError(
            f"{files[0].path}: line 1: its label {first.pop()!r} is in no other line: if it is a "
            "header, name the columns instead of counting them"
        )

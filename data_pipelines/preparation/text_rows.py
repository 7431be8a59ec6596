"""Rows of TSV and CSV files: texts and the label of each."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UserError

_MAX_CLASSES = 100_000


class TextRow(NamedTuple):
    """One or two texts, the label as it is written, and the line it ends in."""

    texts: tuple[str, ...]
    label: str
    line: int


@dataclass(frozen=True)
class TextFile:
    """A file and which of its columns are read.

    Attributes:
        path: The file, UTF-8. Fields of a TSV are never quoted; those of a CSV may be.
        text_columns: Names of the text columns, or their places when there is no header.
        label_column: Likewise.
        header: The columns the first line has to name; None when it has to name those that are
            read, and maybe others.
        num_columns: For files without a header: how many columns a row has; else None.
        skips_broken_rows: Leave out rows that have fewer fields than the header, as GLUE's readers
            do, instead of raising.
    """

    path: Path
    text_columns: tuple[str | int, ...]
    label_column: str | int
    header: tuple[str, ...] | None = None
    num_columns: int | None = None
    skips_broken_rows: bool = False

    def rows(self, *, skipped: list[int] | None = None) -> Iterator[TextRow]:
        """Yields the rows of the file, one at a time.

        Args:
            skipped: Is given the line numbers of the rows that were left out.

        Raises:
            UserError: A column is missing, a row has another number of fields, or the file is no
                UTF-8 text.
        """
        is_tsv = self.path.suffix.lower() != ".csv"
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = (
                    csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                    if is_tsv
                    else csv.reader(file, strict=True)
                )
                texts, label, num_fields = self._places(reader)
                for fields in reader:
                    if len(fields) == num_fields:
                        yield TextRow(
                            tuple(fields[place] for place in texts), fields[label], reader.line_num
                        )
                    elif len(fields) < num_fields and self.skips_broken_rows:
                        if skipped is not None:
                            skipped.append(reader.line_num)
                    else:
                        raise UserError(
                            f"{self.path}: line {reader.line_num}: {len(fields)} fields instead of "
                            f"{num_fields}: cut short, or not a "
                            f"{'TSV without quotes' if is_tsv else 'CSV'}"
                        )
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error

    def _places(self, reader: Iterator[list[str]]) -> tuple[tuple[int, ...], int, int]:
        if self.num_columns is not None:
            places = (*self.text_columns, self.label_column)
            assert all(isinstance(place, int) for place in places), places
            return (
                tuple(int(place) for place in self.text_columns),
                int(self.label_column),
                self.num_columns,
            )
        header = next(reader, [])
        if self.header is not None and tuple(header) != self.header:
            raise UserError(
                f"{self.path}: the first line is {', '.join(header)[:200]!r}, but this file begins "
                f"with the columns {', '.join(self.header)}"
            )
        columns = [str(name) for name in (*self.text_columns, self.label_column)]
        for name in columns:
            if header.count(name) != 1:
                raise UserError(
                    f"{self.path}: {header.count(name)} columns are called {name!r}; there is: "
                    f"{', '.join(header)[:200]}"
                )
        *texts, label = map(header.index, columns)
        return tuple(texts), label, len(header)


def class_numbers(files: Sequence[TextFile]) -> dict[str, int]:
    """Returns the class number by the label as it is written in any of the files.

    Decimal digits are class numbers already; other labels are numbered in their sorted order.

    Raises:
        UserError: There are more classes than a column of labels would have, or see
            `TextFile.rows`.
    """
    names: set[str] = set()
    for file in files:
        for row in file.rows():
            names.add(row.label)
            if len(names) > _MAX_CLASSES:
                raise UserError(
                    f"{file.path}: column {file.label_column!r} has more than {_MAX_CLASSES} "
                    "different values: no column of classes"
                )
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {name: int(name) for name in sorted(names)}
        too_large = [name for name, number in numbers.items() if number >= _MAX_CLASSES]
        if too_large:
            raise UserError(
                f"{files[0].path}: column {files[0].label_column!r}: {too_large[0]} is no class "
                f"number: those are below {_MAX_CLASSES}"
            )
        return numbers
    return {name: number for number, name in enumerate(sorted(names))}

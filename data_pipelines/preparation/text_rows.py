"""Rows of TSV and CSV files: texts and the label of each."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from data_pipelines.errors import UserError, a_few

# The `csv` module's own limit of 128 Ki is less than a long document.
_MOST_CHARACTERS = 16 << 20


class TextRow(NamedTuple):
    """One or two texts, the label without spaces around it, and the line it begins in."""

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
            UserError: A column is missing, a label is empty, a row has another number of fields, or
                the file is no UTF-8 text.
        """
        try:
            # For the whole process; only ever raised, so that nobody else finds it too small.
            csv.field_size_limit(max(csv.field_size_limit(), _MOST_CHARACTERS))
            with self._opened() as file:
                lines = self._numbered_rows(file)
                texts, label, num_fields = self._places(lines)
                for line, fields in _without_blank_end(lines):
                    if len(fields) == num_fields:
                        if not fields[label].strip():
                            raise UserError(
                                f"{self.path}: line {line}: the label is empty: cut short, or a "
                                "row without a label"
                            )
                        row = tuple(fields[place] for place in texts)
                        yield TextRow(row, fields[label].strip(), line)
                    elif len(fields) < num_fields and self.skips_broken_rows:
                        if skipped is not None:
                            skipped.append(line)
                    else:
                        raise self._wrong_row(line, fields, num_fields)
        except (UnicodeDecodeError, OSError) as error:
            raise self._unreadable(error) from error

    def first_row(self) -> list[str]:
        """Returns the fields of the first line, none if the file is empty.

        Raises:
            UserError: The file cannot be read.
        """
        try:
            with self._opened() as file:
                return next(self._numbered_rows(file), (0, []))[1]
        except (UnicodeDecodeError, OSError) as error:
            raise self._unreadable(error) from error

    def last_column(self) -> str | int:
        """Returns the name of the last column, or its place when there is no header."""
        return self.first_row()[-1] if self.num_columns is None else self.num_columns - 1

    @property
    def _is_tsv(self) -> bool:
        return self.path.suffix.lower() != ".csv"

    def _opened(self, *, errors: str = "strict") -> TextIO:
        return self.path.open(encoding="utf-8-sig", errors=errors, newline="")

    def _numbered_rows(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Yields the rows, each with the number of the line it begins in."""
        reader = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if self._is_tsv
            else csv.reader(file, strict=True)
        )
        line = 1
        try:
            for fields in reader:
                yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise self._no_csv(line, reader.line_num, error) from error

    def _no_csv(self, first: int, last: int, error: csv.Error) -> UserError:
        """What is wrong with the row between two lines."""
        if self._is_tsv or first == last:
            return UserError(f"{self.path}: line {first}: cannot be read: {error}")
        opened, is_open = first, False
        with self._opened() as file:
            # The quote that the reader stumbles over in the last line may be one that closes.
            for number, line in enumerate(islice(file, last - 1), start=1):
                for _ in range(line.replace('""', "").count('"') if number >= first else 0):
                    is_open = not is_open
                    opened = number if is_open else opened
        return UserError(
            f"{self.path}: line {opened}: a quote that is opened here is not closed, or closed "
            f"within a field, before line {last} ({error}); a quote inside of quotes is written "
            "twice"
        )

    def _unreadable(self, error: UnicodeDecodeError | OSError) -> UserError:
        if isinstance(error, OSError):
            return UserError(f"{self.path}: cannot be read: {error}")
        with self._opened(errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                content = line.encode("utf-8", "surrogateescape")
                if (wrong := no_utf8(content, where=f"{self.path}: line {number}")) is not None:
                    return wrong
        return UserError(f"{self.path}: is changed while it is read; start again")

    def _wrong_row(self, line: int, fields: list[str], num_fields: int) -> UserError:
        kind = "TSV without quotes (save one with quotes as .csv)" if self._is_tsv else "CSV"
        return UserError(
            f"{self.path}: line {line}: {len(fields)} fields instead of {num_fields}: cut short, "
            f"or not a {kind}"
        )

    def _places(self, rows: Iterator[tuple[int, list[str]]]) -> tuple[tuple[int, ...], int, int]:
        if self.num_columns is not None:
            places = (*self.text_columns, self.label_column)
            assert all(isinstance(place, int) for place in places), places
            return (
                tuple(int(place) for place in self.text_columns),
                int(self.label_column),
                self.num_columns,
            )
        _, header = next(rows, (0, []))
        if self.header is not None and tuple(header) != self.header:
            raise UserError(
                f"{self.path}: the first line is {a_few(header)[:200]!r}, but this file begins "
                f"with the columns {', '.join(self.header)}"
            )
        columns = [str(name) for name in (*self.text_columns, self.label_column)]
        for name in columns:
            if header.count(name) != 1:
                raise UserError(
                    f"{self.path}: {header.count(name)} columns are called {name!r}; there is: "
                    f"{a_few(header, most=10)[:200]}"
                )
        *texts, label = map(header.index, columns)
        return tuple(texts), label, len(header)


def ends_with_line_break(path: Path) -> bool:
    """Returns whether the last line of a file has been written to its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() in (b"\n", b"\r")


def no_utf8(line: bytes, *, where: str) -> UserError | None:
    """Returns what to say of a line that is no UTF-8 text, with the encoding it may be in."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "Windows-1252"
        around = line[max(0, error.start - 20) : error.start + 20]
        if encoding != "UTF-16":
            encoding += f", which reads {around.decode('cp1252', 'replace').strip()!r}"
        return UserError(f"{where}: no UTF-8 text; it may be {encoding}: save the file as UTF-8")
    return None


def _without_blank_end(
    rows: Iterator[tuple[int, list[str]]],
) -> Iterator[tuple[int, list[str]]]:
    """Leaves out blank lines at the end, which editors add; those before stay broken rows."""
    blank: list[tuple[int, list[str]]] = []
    for row in rows:
        if row[1]:
            yield from blank
            blank = []
            yield row
        else:
            blank.append(row)

"""Tables that tests find out, printed at the end of the session."""

from __future__ import annotations

from collections.abc import Sequence

_tables: dict[str, list[Sequence[str]]] = {}


def add_row(table: str, *cells: str) -> None:
    """Adds a row; the first one of a table is its head."""
    _tables.setdefault(table, []).append(cells)


def take_over(found: dict[str, list[Sequence[str]]]) -> None:
    """Adds the tables of another process; each is found out in one."""
    _tables.update(found)


def found_here() -> dict[str, list[Sequence[str]]]:
    """The rows of this process by table."""
    return _tables


def tables() -> list[str]:
    """All tables as text, columns aligned."""
    lines = []
    for title, rows in _tables.items():
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", title]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
    return lines

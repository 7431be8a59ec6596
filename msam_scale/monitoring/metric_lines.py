"""metrics.jsonl: one JSON object a line, with the system before the next step."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError

_LONGEST_LINE = 1 << 20  # bytes


class MetricLines:
    """Appends lines; a resumed run first drops the lines of steps that it will do again.

    What a full disk refuses is kept, and written when there is room again. A file that is damaged
    is set aside: measurements do not stop a training.

    Args:
        path: of the file.
        first_step: steps done before.
        warn: prints a warning.
    """

    def __init__(self, path: Path, *, first_step: int, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._unwritten, self._is_refused = b"", False
        if path.exists():
            try:
                kept = [line for line in read_metric_lines(path) if line["step"] <= first_step]
                replace_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            except UserError as error:
                aside = path.with_name(f"damaged-{uuid.uuid4().hex[:8]}-{path.name}")
                path.rename(aside)
                warn(f"warning: {error}; it is kept as {aside.name}, and a new one begins")
        self._file = path.open("ab", buffering=0)

    def write(self, values: Mapping[str, float | int | str]) -> None:
        """Writes one line; figures that are not finite become null, which JSON has."""
        line = {
            name: None if isinstance(value, float) and not isfinite(value) else value
            for name, value in values.items()
        }
        self._unwritten += json.dumps(line).encode() + b"\n"
        self._write_out("training goes on, and what is missing is written when there is room")

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self._is_refused = False
        self._write_out("the last lines are missing")
        self._file.close()

    def _write_out(self, consequence: str) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._is_refused:
                self._warn(f"warning: {self._path}: {error.strerror}; {consequence}")
            self._is_refused = True
        else:
            self._is_refused = False


def read_metric_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl.

    A killed process may leave half a line at the end, of a step that is done again: it is left out.

    Raises:
        UserError: the file is missing, or a line is damaged; names the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; the folder of a run with monitor.jsonl: true works")
    lines: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number in itertools.count(1):
            text = file.readline(_LONGEST_LINE)
            if not text.endswith(b"\n") and len(text) < _LONGEST_LINE:
                return lines
            try:
                lines.append(_line(text))
            except (ValueError, OverflowError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is damaged: {error}; remove it") from error
    raise AssertionError


def _line(text: bytes) -> dict[str, Any]:
    """A line of the kinds of values that every reader relies on."""
    if not text.endswith(b"\n"):
        raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
    line = json.loads(text.decode("utf-8"))
    if not isinstance(line, dict):
        raise ValueError("expected an object")
    if type(line.get("step")) is not int or line["step"] < 0:
        raise ValueError("expected a step, a whole number")
    if type(line.get("epoch")) not in (int, float) or type(line.get("split")) is not str:
        raise ValueError("expected a number as epoch and a text as split")
    for name, value in line.items():
        if name != "split" and value is not None:
            if type(value) not in (int, float):
                raise ValueError(f"expected a number as {name[:40]!r}")
            float(value)  # whole numbers may be too large for one
    return line

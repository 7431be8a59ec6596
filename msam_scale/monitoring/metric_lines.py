"""metrics.jsonl: one JSON object a line, with the system before the next step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError


class MetricLines:
    """Appends lines; a resumed run first drops the lines of steps that it will do again.

    What a full disk refuses is kept, and written when there is room again.

    Args:
        path: of the file.
        first_step: steps done before.
        warn: prints a warning.
    """

    def __init__(self, path: Path, *, first_step: int, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._unwritten = b""
        if path.exists():
            kept = [line for line in read_metric_lines(path) if line["step"] <= first_step]
            replace_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
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
        self._write_out("the last lines are missing")
        self._file.close()

    def _write_out(self, consequence: str) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            self._warn(f"warning: {self._path}: {error}; {consequence}")


def read_metric_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl.

    A killed process may leave half a line at the end, of a step that is done again: it is left out.

    Raises:
        UserError: the file is missing, or a line is damaged; names the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; the folder of a run with monitor.jsonl: true works")
    lines = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            break
        try:
            line = json.loads(text)
            line["step"], line["epoch"], line["split"]  # what every reader relies on
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} is damaged: {error}; remove it") from error
        lines.append(line)
    return lines

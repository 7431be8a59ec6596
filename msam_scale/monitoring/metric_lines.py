"""metrics.jsonl: one JSON object a line, on disk before the next step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from data_pipelines.durable_files import replace_file


class MetricLines:
    """Appends lines; a resumed run first drops the lines of steps that it will do again."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        if path.exists():
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first_step]
            replace_file(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, float | int | str]) -> None:
        """Writes one line; figures that are not finite become null, which JSON has."""
        line = {
            name: None if isinstance(value, float) and not isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _whole_lines(path: Path) -> list[str]:
    # A killed process may leave half a line, always the last and of a step that is done again.
    return [line for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]

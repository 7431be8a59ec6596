"""Where the time of the suite goes: by kind of work and by file, printed at the end of each run.

pytest's own `--durations` prints the slowest tests. What it cannot tell is what they wait for.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ZERO3 = "ZeRO-3 on ranks"
RANKS = "other work on ranks"
COMMANDS = "commands and launchers"
TEST_PROCESS = "in the test process"
STARTS = "commands started"
_NUM_FILES = 25

_spent: dict[str, float] = defaultdict(float)
_running: set[int] = set()
_running_since = 0.0


@contextmanager
def working(kind: str) -> Iterator[None]:
    """Counts the time inside as that kind of work."""
    start = time.monotonic()
    try:
        yield
    finally:
        _spent[kind] += time.monotonic() - start


def watch_commands() -> None:
    """From now on the time in which a command runs is counted, for every `subprocess.Popen`."""
    start, end = subprocess.Popen.__init__, subprocess.Popen._handle_exitstatus  # type: ignore[attr-defined]

    def starts(process: Any, *arguments: Any, **named: Any) -> None:
        global _running_since
        if not _running:
            _running_since = time.monotonic()
        _running.add(id(process))
        _spent[STARTS] += 1
        try:
            start(process, *arguments, **named)
        except BaseException:
            _has_ended(process)
            raise

    def ends(process: Any, *arguments: Any, **named: Any) -> None:
        end(process, *arguments, **named)
        _has_ended(process)

    subprocess.Popen.__init__ = starts  # type: ignore[method-assign]
    subprocess.Popen._handle_exitstatus = ends  # type: ignore[attr-defined]


def _has_ended(process: Any) -> None:
    if id(process) in _running:
        _running.remove(id(process))
        if not _running:
            _spent[COMMANDS] += time.monotonic() - _running_since


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """The seconds of what happens inside, by kind; filled in at the end."""
    _spent.clear()
    _running.clear()
    start = time.monotonic()
    seconds: dict[str, float] = {}
    yield seconds
    if _running:  # a command that nobody has waited for
        _spent[COMMANDS] += time.monotonic() - _running_since
    seconds.update(_spent)
    waited = sum(_spent[kind] for kind in (ZERO3, RANKS, COMMANDS))
    seconds[TEST_PROCESS] = max(0.0, time.monotonic() - start - waited)


class Totals:
    """The seconds of all tests, by kind and by file."""

    def __init__(self) -> None:
        self.by_kind: dict[str, float] = defaultdict(float)
        self.by_file: dict[str, float] = defaultdict(float)

    def add(self, test: str, seconds: Mapping[str, float]) -> None:
        """Adds what `measured` gave for a test."""
        for kind, amount in seconds.items():
            self.by_kind[kind] += amount
            if kind != STARTS:
                self.by_file[test.partition("::")[0]] += amount

    def take_over(self, by_kind: Mapping[str, float], by_file: Mapping[str, float]) -> None:
        """Adds the totals of another process."""
        for mine, others in ((self.by_kind, by_kind), (self.by_file, by_file)):
            for name, amount in others.items():
                mine[name] += amount

    def lines(self) -> list[str]:
        """Two tables as text."""
        if not self.by_kind:
            return []
        kinds = dict(self.by_kind)
        num_starts = kinds.pop(STARTS, 0)
        return [
            "",
            f"Seconds by kind of work, over all test processes ({num_starts:.0f} commands started)",
            *_rows(kinds),
            "",
            f"Seconds by file, the {_NUM_FILES} longest",
            *_rows(self.by_file)[:_NUM_FILES],
        ]


def _rows(seconds: Mapping[str, float]) -> list[str]:
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [f"  {amount:8.1f}  {name}" for name, amount in ordered]

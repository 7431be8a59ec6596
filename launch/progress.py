"""Shows on stderr how far a long-running command is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows the progress of one piece of work after the other."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        self._what: str | None = None
        self._bar: tqdm[None] | None = None
        self._is_terminal = sys.stderr.isatty()
        self._last_line = 0.0

    def __call__(self, what: str, *, done: int, total: int | None, unit: str) -> None:
        """Takes the state of the work; see `data_pipelines.progress.Progress`."""
        if self._is_terminal:
            self._show_bar(what, done=done, total=total, unit=unit)
            return
        is_over = total is not None and done >= total
        if what != self._what or is_over or self._is_due():
            self._last_line = time.monotonic()
            of = f" of {total}" if total is not None else ""
            print(f"{what}: {done}{of} {unit}", file=sys.stderr, flush=True)
        self._what = what

    def close(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES

    def _show_bar(self, what: str, *, done: int, total: int | None, unit: str) -> None:
        if self._bar is None or what != self._what:
            self.close()
            self._bar = tqdm(desc=what, total=total, unit=f" {unit}", file=sys.stderr)
            self._what = what
        self._bar.total = total
        self._bar.update(done - self._bar.n)

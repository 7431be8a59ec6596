"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from tqdm import tqdm

_SHOWN = (
    "loss",
    "accuracy",
    "f1",
    "matthews_correlation",
    "ema_loss",
    "ema_accuracy",
    "ema_f1",
    "ema_matthews_correlation",
    "sharpness",
    "lr",
    "samples_per_second",
    "skipped_steps",
    "rollbacks",
)


class Progress:
    """Shows how far the run is on stderr.

    Args:
        first_step: steps done before.
        num_steps: steps of the run.
        shown: whether anything is printed.
    """

    def __init__(self, *, first_step: int, num_steps: int, shown: bool) -> None:
        self._num_steps = num_steps
        self._left = num_steps - first_step
        self._first: tuple[float, int] | None = None
        self._shown = shown
        self._bar = (
            tqdm(initial=first_step, total=num_steps, unit="step", dynamic_ncols=True)
            if shown and sys.stderr.isatty()
            else None
        )

    def advance(self) -> None:
        """One step is done."""
        self._left -= 1
        if self._first is None:  # the first step of a process is slow
            self._first = time.monotonic(), self._left
        if self._bar is not None:
            self._bar.update()

    def rewind(self, step: int) -> None:
        """The run goes on after so many steps."""
        self._left, self._first = self._num_steps - step, None
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def show(self, values: Mapping[str, float | int | str]) -> None:
        """Shows a metric line."""
        figures = "  ".join(
            f"{name} {_short(values[name])}"
            for name in _SHOWN
            if values.get(name) is not None and (name != "skipped_steps" or values[name])
        )
        if self._bar is not None:
            if values["split"] == "train":
                self._bar.set_postfix_str(figures)
            else:
                self.say(f"step {values['step']}: val  {figures}")
        else:
            self.say(
                f"{time.strftime('%H:%M:%S')}  step {values['step']}/{self._num_steps}  "
                f"epoch {_short(values['epoch'])}  {values['split']}  {figures}{self._rest()}"
            )

    def _rest(self) -> str:
        """How long the rest will take, once that can be told."""
        if self._first is None or not 0 < self._left < self._first[1]:
            return ""
        then, left = self._first
        seconds = (time.monotonic() - then) / (left - self._left) * self._left
        return f"  {timedelta(seconds=round(seconds))} left"

    def say(self, text: str, *, always: bool = False) -> None:
        """Prints a line without disturbing the bar; `always`: also where nothing is shown."""
        if not (self._shown or always):
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

_SHOWN = (
    "loss",
    "accuracy",
    "ema_loss",
    "ema_accuracy",
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
        self._shown = shown
        self._bar = (
            tqdm(initial=first_step, total=num_steps, unit="step", dynamic_ncols=True)
            if shown and sys.stderr.isatty()
            else None
        )

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def rewind(self, step: int) -> None:
        """The run goes on after so many steps."""
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
                f"step {values['step']}/{self._num_steps}  epoch {_short(values['epoch'])}  "
                f"{values['split']}  {figures}"
            )

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

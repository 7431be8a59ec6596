"""Sends each metric line to the file, to TensorBoard and to the terminal."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msam_scale.config import Config
from msam_scale.monitoring.metric_lines import MetricLines
from msam_scale.monitoring.metrics import METRICS
from msam_scale.monitoring.progress import Progress

if TYPE_CHECKING:
    from msam_scale.monitoring.board import Board


class Monitor:
    """The reports of one run, on the first rank; on the others it does nothing.

    Args:
        config: its `monitor` section says which reports are wanted.
        folder: the run's folder.
        first_step: steps done before this start.
        num_steps: steps of the run.
        speaks: whether this is the rank that reports.
    """

    def __init__(
        self, config: Config, *, folder: Path, first_step: int, num_steps: int, speaks: bool
    ) -> None:
        section = config.monitor
        self._speaks = speaks
        self._board_folder = folder / "tensorboard"
        self._lines = self._board = None
        with ExitStack() as opened:
            if speaks and section.jsonl:
                self._lines = MetricLines(
                    folder / "metrics.jsonl", first_step=first_step, warn=self.warn
                )
                opened.callback(self._lines.close)
            if speaks and section.tensorboard:
                self._board = self._new_board(first_step)
            opened.pop_all()
        self._progress = Progress(
            first_step=first_step, num_steps=num_steps, shown=speaks and section.progress
        )

    def advance(self) -> None:
        """One optimizer step is done."""
        self._progress.advance()

    def rewind(self, step: int) -> None:
        """The run goes on after so many steps: TensorBoard forgets the later ones.

        metrics.jsonl keeps its lines, so that what happened can be read there.
        """
        if self._board is not None:
            self._board.close()
            self._board = self._new_board(step)
        self._progress.rewind(step)

    def _new_board(self, step: int) -> Board:
        from msam_scale.monitoring.board import Board  # imports TensorBoard

        return Board(self._board_folder, first_step=step, warn=self.warn)

    def report(self, *, step: int, epoch: float, split: str, **figures: float | int) -> None:
        """Reports figures named in `METRICS` after so many steps."""
        if not self._speaks:
            return
        assert figures.keys() <= METRICS.keys(), figures
        values: dict[str, Any] = {"step": step, "epoch": epoch, "split": split, **figures}
        if self._lines is not None:
            self._lines.write(values)
        if self._board is not None:
            scalars = {METRICS[name].tag.format(split=split): x for name, x in figures.items()}
            self._board.write(scalars, step=step)
        self._progress.show(values)

    def say(self, text: str) -> None:
        """Prints a line beside the progress."""
        self._progress.say(text)

    def warn(self, text: str) -> None:
        """Prints a line on the first rank, also where no progress is shown."""
        if self._speaks:
            self._progress.say(text, always=True)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._progress.close()
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()

"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes scalars; a disk that is full costs figures, not the run.

    Args:
        folder: gets the event files.
        first_step: steps done before; what an earlier start wrote of later ones is hidden.
        warn: prints a warning.
    """

    def __init__(self, folder: Path, *, first_step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Writes figures after so many steps, by tag."""
        try:
            if self._writer is None:  # after a failure: TensorBoard's thread has ended
                self._writer = SummaryWriter(str(self._folder))
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()
        except OSError as error:
            self._give_up(step, error)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._warn(f"warning: {self._folder}: the last figures are not written: {error}")

    def _give_up(self, step: int, error: OSError) -> None:
        self._writer = None
        self._warn(
            f"warning: {self._folder}: figures up to step {step} may be missing: {error}; "
            "training goes on"
        )

"""When a run saves, and what it does when that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msam_scale.checkpoint import PendingCheckpoint
from msam_scale.config.sections.system import CheckpointSection
from msam_scale.engine import Engine


class Saver:
    """Saves a run's checkpoints; one that cannot be written ends the run.

    Args:
        engine: whose state it is.
        section: the config's `checkpoint`.
        directory: of the run's checkpoints.
        resumed: the checkpoint that the run goes on from, if there is one.
        extra: what it holds beside the engine's state, if it is in that directory.
        saved: is told of each checkpoint that is complete, in order, and of its step.

    Attributes:
        newest: the newest checkpoint of the run.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        section: CheckpointSection,
        directory: Path,
        resumed: Path | None,
        extra: Mapping[str, Any] | None,
        saved: Callable[[Path, int], None],
    ) -> None:
        self._tell = saved
        self._engine, self._section, self._directory = engine, section, directory
        self.newest = resumed
        # The step of the last checkpoint, and what was due then: it may have been done since.
        self._saved = None if extra is None else self._state(extra)
        self._pending: tuple[tuple[int, list[str]], PendingCheckpoint] | None = None

    def is_due(self) -> bool:
        """Whether the config wants a checkpoint after the steps that are done."""
        every = self._section.every
        return every is not None and self._engine.num_steps_done % every == 0

    def save(self, extra: Mapping[str, Any]) -> None:
        """Saves unless this step is saved. Collective.

        Raises:
            NotWrittenError: it cannot be written, or the one before could not beside training.
            NonFiniteError: it has values that are not finite, or the one before had.
        """
        if self._is_saved(extra):
            return
        if self._section.asynchronous:
            pending = self._engine.begin_checkpoint(
                self._directory, extra=extra, keep=self._section.keep
            )
            self._pending = self._state(extra), pending
        else:
            self._write(extra)

    def save_last(self, extra: Mapping[str, Any]) -> None:
        """As `save`, before the run ends, and waits. Collective."""
        if not self._is_saved(extra):
            self._write(extra)

    def is_at(self, step: int) -> None:
        """The run has gone back to the checkpoint after so many steps."""
        self._saved = step, []

    def look(self) -> None:
        """Asks how writing beside training ended, if it has; does not wait."""
        if self._pending is not None and self._pending[1].is_done:
            self.settle()

    def settle(self) -> None:
        """Waits for what is being written beside training."""
        if self._pending is None:
            return
        (state, pending), self._pending = self._pending, None
        self._is_written(pending.result(), state)

    def _is_saved(self, extra: Mapping[str, Any]) -> bool:
        self.settle()
        return self._saved == self._state(extra)

    def _state(self, extra: Mapping[str, Any]) -> tuple[int, list[str]]:
        return self._engine.num_steps_done, list(extra.get("due", []))

    def _write(self, extra: Mapping[str, Any]) -> None:
        folder = self._engine.save_checkpoint(self._directory, extra=extra, keep=self._section.keep)
        self._is_written(folder, self._state(extra))

    def _is_written(self, folder: Path, state: tuple[int, list[str]]) -> None:
        self._saved, self.newest = state, folder
        self._tell(folder, state[0])

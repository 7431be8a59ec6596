"""Writes checkpoints, while the caller waits or while training goes on."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from msam_scale.checkpoint.commit import write_checkpoint
from msam_scale.checkpoint.snapshot import Snapshot, Staging
from msam_scale.ranks import Ranks

_logger = logging.getLogger("msam_scale")


class PendingCheckpoint:
    """A checkpoint that is being written."""

    def __init__(self, snapshot: Snapshot, ranks: Ranks) -> None:
        self._is_told = False
        self._folder: Path | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, ranks), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `result` is there without waiting, on this rank."""
        return not self._thread.is_alive()

    def result(self) -> Path:
        """Waits until the checkpoint is complete and on disk.

        Raises:
            NotWrittenError: a file system refused, on all ranks alike.
        """
        self._thread.join()
        self._is_told = True
        if self._error is not None:
            raise self._error
        assert self._folder is not None
        return self._folder

    def wait(self) -> None:
        """Waits for its end; a failure that nobody has asked for is logged."""
        self._thread.join()
        if self._error is not None and not self._is_told:
            _logger.warning("%s", self._error)

    def _write(self, snapshot: Snapshot, ranks: Ranks) -> None:
        try:
            self._folder = write_checkpoint(snapshot, ranks)
        except BaseException as error:
            self._error = error


class CheckpointWriter:
    """Writes the checkpoints of one engine, one at a time. Making it is collective.

    Writing beside training has a process group of its own, so that its messages and those of the
    steps never meet; and host memory for one snapshot. Training waits for the copy into it, and for
    the checkpoint before where that is not written yet.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._beside_training = ranks, ranks.apart("checkpoints")
        self._staging = Staging()
        self._pending: PendingCheckpoint | None = None

    def write(self, snapshot: Snapshot) -> Path:
        """Writes and waits. Collective.

        Raises:
            NotWrittenError: a file system refuses, on all ranks alike.
        """
        self.wait()
        return write_checkpoint(snapshot, self._ranks)

    def begin(self, snapshot: Snapshot) -> PendingCheckpoint:
        """Copies the snapshot and writes it beside what comes next. Collective."""
        self.wait()
        self._pending = PendingCheckpoint(self._staging.staged(snapshot), self._beside_training)
        return self._pending

    def wait(self) -> None:
        """Waits for what is being written; its `result` tells the caller how it ended."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

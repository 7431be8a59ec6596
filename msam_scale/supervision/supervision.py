"""All that watches over one start of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch

from msam_scale.config.sections.faults import FaultsSection
from msam_scale.ranks import Ranks, shared_store
from msam_scale.supervision.heartbeats import Heartbeats
from msam_scale.supervision.launcher import LauncherWatch
from msam_scale.supervision.lost_rank import lost_rank
from msam_scale.supervision.stop_request import StopAgreedError, StopRequest
from msam_scale.supervision.watchdog import Watchdog, record_collectives

Batch = TypeVar("Batch")
# The watchdog, which knows more than a collective that gives up, is to speak first. What it asks
# the other ranks takes some seconds.
_SECONDS_AFTER_THE_WATCHDOG = 60.0
# Of groups that are never to give up; gloo counts milliseconds in 32 bits.
_NEVER = timedelta(days=20)


class Supervision:
    """Stop requests, the watchdog and the heartbeats of this process.

    Args:
        faults: the config's section.
        code: exit code of a process that is stopped before it has joined the others.
        launcher: what the program found of it before it imported anything; by default it is looked
            for now.
    """

    def __init__(
        self, faults: FaultsSection, *, code: int, launcher: LauncherWatch | None = None
    ) -> None:
        self.stop = StopRequest(grace=faults.grace, code=code)
        self._rank = int(os.environ.get("RANK", "0"))
        self._watchdog = Watchdog(timeout=faults.timeout, rank=self._rank)
        self._launcher = launcher or LauncherWatch()
        self._heartbeats: Heartbeats | None = None
        self.timeout = _NEVER
        """For process groups."""
        if faults.timeout is not None:
            seconds = faults.timeout + _SECONDS_AFTER_THE_WATCHDOG
            self.timeout = min(timedelta(seconds=seconds), _NEVER)

    def start(self) -> None:
        """Before this process joins the others. In the main thread."""
        if torch.cuda.is_available():
            record_collectives(rank=self._rank)
        self.stop.listen()
        self._launcher.start(self.stop.launcher_is_gone)
        self._watchdog.start()

    def join(self, ranks: Ranks) -> None:
        """When this process has joined the others. Collective."""
        self.stop.join(ranks, timeout=self.timeout)
        store = shared_store()
        if ranks.size > 1 and store is not None:
            self._heartbeats = Heartbeats(
                store, rank=ranks.rank, size=ranks.size, now=lambda: self._watchdog.mark
            )
            self._watchdog.heartbeats = self._heartbeats
            self._heartbeats.start()

    def beat(self, phase: str, *, step: int | None = None) -> None:
        """Marks progress; see `Watchdog.beat`."""
        self._watchdog.beat(phase=phase, step=step)

    def check(self) -> None:
        """Between two steps or parts of a measurement. Collective.

        Raises:
            StopAgreedError: all ranks stop here.
        """
        if self.stop.poll():
            raise StopAgreedError

    def start_check(self) -> None:
        """As `check`, and waits for a request that was made before it. Collective.

        Raises:
            StopAgreedError: all ranks stop here.
        """
        if self.stop.agree():
            raise StopAgreedError

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the watchdog knows when they are waited for."""
        while True:
            self.beat("loading data")
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.beat("step")
            yield batch

    def lost_rank(self, error: BaseException) -> str | None:
        """One line for an error that says that another rank is gone; None for any other error."""
        step, _ = self._watchdog.mark
        return lost_rank(error, heartbeats=self._heartbeats, step=step)

    def finish(self) -> None:
        """Everything is done and saved: later requests have no effect. Collective."""
        self.stop.finish()

    def leave(self) -> None:
        """Lets go of what belongs to the process group, which ends with its last user."""
        self.stop.leave()
        # Nobody may answer an orphan's heartbeats, and its process ends at once.
        if self._heartbeats is not None and not self.stop.is_orphan:
            self._heartbeats.close()

    def close(self) -> None:
        """Watches over nothing any more; gives the signals back."""
        self.leave()
        self._watchdog.close()
        self._launcher.close()
        self.stop.close()

"""What every rank last did, in the store that the ranks have met at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

SECONDS_BETWEEN_BEATS = 2.0
_SECONDS_TO_READ = 3.0
_PHASES = ("starting", "loading data", "step", "evaluation", "sharpness", "saving")


@dataclass(frozen=True)
class Heartbeat:
    """What a rank has said of itself.

    Attributes:
        number: rises with each beat, so that a rank which no longer beats is seen without clocks.
        step: the optimizer step it works on, or the last one done.
        phase: one of the watchdog's.
    """

    number: int
    step: int
    phase: str

    def is_behind(self, step: int, phase: str) -> bool:
        """Whether the rank has not come to this phase of this step."""
        mine = _PHASES.index(self.phase) if self.phase in _PHASES else 0
        return (self.step, mine) < (step, _PHASES.index(phase))


class Heartbeats:
    """A thread that writes this rank's, and readers for those of all ranks.

    The store's server is a process that may be gone or stopped, and then an operation may wait for
    ever. So each is done in a thread that nobody waits for without limit, on a connection of its
    own.

    Args:
        store: of all ranks.
        rank: this rank.
        size: W.
        now: step and phase of this rank.
        interval: seconds between two beats.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        size: int,
        now: Callable[[], tuple[int, str]],
        interval: float = SECONDS_BETWEEN_BEATS,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._now, self._interval = now, interval
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Starts to beat."""
        self._thread.start()

    def close(self) -> None:
        """Beats no longer."""
        self._closed.set()
        self._thread.join(_SECONDS_TO_READ)

    def read(self) -> dict[int, Heartbeat] | None:
        """The newest beat of each rank that has any; None where the store does not answer."""
        found: dict[int, Heartbeat] = {}
        is_complete = threading.Event()

        def read() -> None:
            with suppress(RuntimeError, ValueError):
                store = self._connection()
                for rank in range(self._size):
                    if store.check([str(rank)]):
                        number, step, phase = store.get(str(rank)).decode().split(" ", 2)
                        found[rank] = Heartbeat(int(number), int(step), phase)
                is_complete.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_READ)
        return dict(found) if is_complete.is_set() else None

    def survey(self) -> tuple[dict[int, Heartbeat], list[int]] | None:
        """The newest beats, and the ranks that have stopped to beat; takes a few seconds.

        None where the store does not answer.
        """
        before = self.read()
        self._closed.wait(2 * self._interval)
        after = None if before is None else self.read()
        if before is None or after is None:
            return None
        silent = [
            rank
            for rank in range(self._size)
            if rank != self._rank and not _has_beaten(before.get(rank), after.get(rank))
        ]
        return after, silent

    def _beat(self) -> None:
        store: Store | None = None
        number = 0
        while not self._closed.is_set():
            number += 1
            try:
                store = store or self._connection()
                step, phase = self._now()
                store.set(str(self._rank), f"{number} {step} {phase}")
            except RuntimeError:
                store = None  # the next beat tries again
            self._closed.wait(self._interval)

    def _connection(self) -> Store:
        store: Store = self._store.clone()
        store.set_timeout(timedelta(seconds=_SECONDS_TO_READ))
        return PrefixStore("msam_scale/heartbeats", store)


def _has_beaten(before: Heartbeat | None, after: Heartbeat | None) -> bool:
    return after is not None and (before is None or before.number != after.number)

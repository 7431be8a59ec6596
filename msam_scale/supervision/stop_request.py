"""A request to stop, from a signal to any rank, that all ranks follow after the same step."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist

from msam_scale.ranks import Ranks
from msam_scale.supervision.signals import SignalListener

# Launchers and batch systems send one signal several times: to the process, to its group.
_SECONDS_OF_ONE_REQUEST = 2.0
_SECONDS_BETWEEN_LOOKS = 0.1
# Above every signal's number; the largest reason is the one that all ranks name.
_LAUNCHER_GONE, FOLDER_GONE = 128, 129
_NAMES = {_LAUNCHER_GONE: "its launcher is gone", FOLDER_GONE: "the run's folder is gone"}


class StopAgreedError(Exception):
    """All ranks have agreed to stop here."""


class StopRequest:
    """Hears requests to stop, and agrees on one with the other ranks.

    Args:
        grace: seconds from the request on after which a process that is still there ends itself.
        code: the exit code of a process that is asked to stop before it has joined the others:
            it has nothing to save and ends at once.
    """

    def __init__(self, *, grace: float, code: int) -> None:
        self._grace, self._code = grace, code
        self._listener: SignalListener | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._first_signal: float | None = None
        self._asked = self._agreed = 0
        self._ranks: Ranks | None = None
        self._group: dist.ProcessGroup | None = None
        self._value = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._is_over = self._ends_children = False
        self._failed: int | None = None

    @property
    def reason(self) -> str:
        """What asked for the stop: a signal's name, or that the launcher is gone."""
        return _name(self._agreed or self._asked)

    @property
    def is_orphan(self) -> bool:
        """Whether the process that started this one is gone, maybe with the store of the ranks."""
        return _LAUNCHER_GONE in (self._agreed, self._asked)

    def listen(self) -> None:
        """From here on `STOP_SIGNALS` are requests. In the main thread."""
        self._listener = SignalListener(self.hear)
        self._listener.start()

    def join(self, ranks: Ranks, *, timeout: timedelta | None = None) -> None:
        """From here on requests wait for the other ranks. Collective.

        Args:
            ranks: this process's place among all.
            timeout: after which an agreement that another rank does not come to fails.
        """
        if ranks.world is not None:
            # A group of its own: its sums neither wait for those of gradients nor mix with them.
            group = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._ranks = ranks

    def hear(self, number: int) -> None:
        """A signal has come. The first is a request, a later one ends the process at once."""
        now = time.monotonic()
        if self._failed is not None:
            os._exit(self._failed)
        if self._is_over:
            return
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > _SECONDS_OF_ONE_REQUEST:
            _end(signal.Signals(number).name, "a second signal: ended at once", 128 + number)
        self.request(number)

    def launcher_is_gone(self) -> None:
        """The process that started this one has ended: nobody would end this one later."""
        self.request(_LAUNCHER_GONE)

    def request(self, reason: int) -> None:
        """Asks for a stop, from any thread.

        Args:
            reason: a signal's number, or one that stands for something that is gone.
        """
        if self._is_over:
            return
        if self._ranks is None:
            _end(_name(reason), "stopped before training", self._code)
        if not self._asked:
            self._asked = reason
            if self._ranks.is_first:
                print(f"msam-scale: {_name(reason)}: stopping", file=sys.stderr, flush=True)
        self._start_grace(reason)

    def poll(self) -> bool:
        """Whether all ranks stop here. Collective, and the same on all ranks.

        It reads what the call before has started, so it waits for no rank that is less than a
        whole turn behind, and a request is followed one call after it was made.
        """
        if self._agreed:
            return True
        if self._group is None:
            self._agreed = self._asked
        else:
            if self._work is not None:
                self._work.wait()
                self._agreed = int(self._value)  # in host memory
            if not self._agreed:
                self._value = torch.tensor([self._asked])
                self._work = dist.all_reduce(
                    self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True
                )
        if self._agreed:
            self._work = None
            self._start_grace(self._agreed)
        return bool(self._agreed)

    def agree(self) -> bool:
        """As `poll`, and waits for the answer."""
        return self.poll() or self.poll()

    @contextmanager
    def ending_children(self) -> Iterator[None]:
        """Inside, a request ends the processes that this one starts, such as compilers.

        What fails inside for a request ends this process as before it has joined the others:
        nothing is to be saved.
        """
        others = set(psutil.Process().children(recursive=True))
        self._ends_children = True
        threading.Thread(target=self._end_children, args=[others], daemon=True).start()
        try:
            yield
        except Exception:
            if self._asked:
                _end(_name(self._asked), "stopped before training", self._code)
            raise
        finally:
            self._ends_children = False

    def _end_children(self, others: set[psutil.Process]) -> None:
        # Not once: where one rank's compiler is ended, another rank starts its own.
        while self._ends_children:
            if self._asked:
                for child in set(psutil.Process().children(recursive=True)) - others:
                    with suppress(psutil.NoSuchProcess):
                        child.terminate()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def fail(self, code: int) -> None:
        """This process is about to end with an error: from here on a signal ends it at once."""
        self._failed = code

    def finish(self) -> None:
        """Everything is done and saved: later requests have no effect. Collective.

        After it no rank is ended by another one's end, which launchers answer with signals to all.
        """
        self._is_over = True
        if self._group is not None:
            if self._work is not None:
                self._work.wait()
                self._work = None
            dist.barrier(group=self._group)

    def leave(self) -> None:
        """Leaves the group of ranks."""
        self._group = self._work = None

    def close(self) -> None:
        """Gives the signals back, and forgets the limit of time."""
        self._is_over = True
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _start_grace(self, reason: int) -> None:
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(self._grace, self._end_late, [reason])
                self._timer.daemon = True
                self._timer.start()

    def _end_late(self, reason: int) -> None:
        number = signal.SIGTERM if reason in _NAMES else reason
        what = f"not stopped within {self._grace:g} s (faults.grace): ended at once"
        _end(_name(reason), what, 128 + number)


def _name(reason: int) -> str:
    return _NAMES.get(reason) or signal.Signals(reason).name


def _end(why: str, what: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK")
    who = "msam-scale" if rank is None else f"msam-scale, rank {rank}"
    try:
        # os.write: another thread may hold the lock of sys.stderr for ever.
        os.write(2, f"{who}: {why}: {what}\n".encode())
    finally:  # also where nobody reads stderr any more
        os._exit(code)

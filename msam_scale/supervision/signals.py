"""Hears signals at once, whatever the main thread waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""What launchers, batch systems and terminals send to end a process."""

_END = 255  # no signal has this number


def take_over(handler: Callable[[int, FrameType | None], Any]) -> dict[signal.Signals, Any]:
    """Installs a handler of `STOP_SIGNALS`, but of SIGHUP only where `nohup` is not used.

    Returns:
        What handled them before, for `give_back`.
    """
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = (one for one in STOP_SIGNALS if not (is_nohup and one == signal.SIGHUP))
    return {one: signal.signal(one, handler) for one in heard}


def give_back(before: dict[signal.Signals, Any]) -> None:
    """Restores the handlers that `take_over` has replaced."""
    for one, handler in before.items():
        signal.signal(one, signal.SIG_DFL if handler is None else handler)


class SignalListener:
    """A thread that is told of signals.

    Python runs a signal's handler in the main thread between two of its instructions, so not while
    that waits for other ranks in a collective. What the interpreter does at once is to write the
    signal's number to a file descriptor (`signal.set_wakeup_fd`); the thread reads it there.

    Args:
        heard: called in the thread with the number of each of `STOP_SIGNALS`.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._before: dict[signal.Signals, Any] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def start(self) -> None:
        """Takes the signals over; they no longer end the process or interrupt it.

        Python allows this to the main thread only; started from another one, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = take_over(_nothing)
        # Other signals are written, too, such as that of an ended loader process; a full pipe
        # holds more of them than matter.
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        """Gives the signals back as they were."""
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            give_back(self._before)
            self._before = {}
            os.set_blocking(self._write, True)
            os.write(self._write, bytes([_END]))
            self._thread.join()
        for descriptor in (self._read, self._write):
            os.close(descriptor)

    def _listen(self) -> None:
        while True:
            for number in os.read(self._read, 4096):
                if number == _END:
                    return
                if number in STOP_SIGNALS:
                    self._heard(number)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Stands for the handler, without which nothing is written."""

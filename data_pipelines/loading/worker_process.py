"""A loader process ends with the process that loads, however that ends, and not before it."""

import os
import signal
import sys
import threading

# Said to `DataLoader`, because Python's own default differs between its versions. Forked loaders
# start in milliseconds and inherit the mapped index; where forks are not safe, they are not.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
_SECONDS_BETWEEN_LOOKS = 1.0


def follow_parent(worker: int) -> None:
    """Makes this loader process deaf to signals that are meant for its parent.

    Batch systems and launchers signal all processes of a job or of a group. The parent may then
    need more batches to end in order, so its loaders have to stay; and when it is killed, they have
    to go.

    Args:
        worker: Number of the loader; `DataLoader` gives it.
    """
    # Python may have inherited the parent's descriptor, which tells the parent of signals.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Blocked here, before there are other threads, it is left to the thread that waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent asks for it, as `DataLoader` may, or is gone."""
    while os.getppid() == parent:
        if hasattr(signal, "sigtimedwait"):
            heard = signal.sigtimedwait({signal.SIGTERM}, _SECONDS_BETWEEN_LOOKS)
            if heard is not None and heard.si_pid == parent:
                break
        else:  # macOS
            signal.sigwait({signal.SIGTERM})
            break
    os._exit(0)

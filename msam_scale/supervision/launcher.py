"""Notices that the processes which started this rank are gone, so that no orphan lives on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import psutil

_SECONDS_BETWEEN_LOOKS = 1.0
# Set by torchrun, `msam-scale train --nproc`, the deepspeed launcher and MPI's wrappers.
_SIGNS_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# A person who sets these variables by hand starts ranks from a shell, and may leave it.
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh", "busybox"}
# Set by torchrun and `msam-scale train --nproc`, and by the deepspeed launcher.
_SIGNS_OF_TORCH = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_DEEPSPEED = {"deepspeed.launcher.launch", "deepspeed.launcher.runner"}


class LauncherWatch:
    """A thread that watches the launcher, if there is one.

    It is the parent. The deepspeed launcher is two processes, of which a signal may end the outer
    one alone, so that both are watched there. They are looked for when the object is made, which is
    to be before imports that take seconds: afterwards a launcher that is gone has left no trace.

    Args:
        environment: tells whether a launcher started this process; by default the real one.
    """

    def __init__(self, *, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        started = all(name in environment for name in _SIGNS_OF_A_LAUNCHER)
        self._parent = os.getppid()
        self.launchers = _launchers() if started else []
        has_torch = any(name in environment for name in _SIGNS_OF_TORCH)
        # Whoever takes over orphans, such as init, has become the parent.
        self._is_orphan = started and has_torch and not _may_launch(self._parent)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, gone: Callable[[], None]) -> None:
        """Starts to watch.

        Args:
            gone: called once, in the thread, when one of the processes has ended.
        """
        if self.launchers or self._is_orphan:
            self._thread = threading.Thread(
                target=self._watch, args=(gone,), name="launcher", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, gone: Callable[[], None]) -> None:
        while not self._is_gone():
            if self._closed.wait(_SECONDS_BETWEEN_LOOKS):
                return
        gone()

    def _is_gone(self) -> bool:
        changed = os.getppid() != self._parent
        return self._is_orphan or changed or not all(map(_is_alive, self.launchers))


def _launchers() -> list[psutil.Process]:
    """The parent, unless it is a shell, and all of the deepspeed launcher above it."""
    found: list[psutil.Process] = []
    try:
        process = psutil.Process().parent()
        while process is not None:
            if (found or process.name() in _SHELLS) and not is_deepspeed(process.cmdline()):
                break
            found.append(process)
            process = process.parent()
    except psutil.Error:
        pass  # of another user, or just gone: what was found is watched
    return found


def is_deepspeed(command: Sequence[str]) -> bool:
    """Whether a command line is the deepspeed launcher's: `deepspeed …` or one of its modules."""
    # The words after the interpreter and its options; those of a script may say anything.
    words = [word for word in command[:5] if not word.startswith("-")][:2]
    return any(word in _DEEPSPEED or PurePath(word).name == "deepspeed" for word in words)


def _may_launch(pid: int) -> bool:
    """Whether a process may be a launcher, which has torch, or a script that one has started."""
    try:
        has_torch = "libtorch" in Path(f"/proc/{pid}/maps").read_text()
        return has_torch or "RANK" in psutil.Process(pid).environ()
    except FileNotFoundError:
        return True  # just gone, which is seen later, or this is not Linux
    except (OSError, psutil.Error):
        return False  # of another user, as no launcher of this rank is


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True

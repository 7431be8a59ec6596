"""TensorBoard's event files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_PREFIX = "events.out.tfevents."
_Hook = Callable[[threading.ExceptHookArgs], object]


class Board:
    """Writes scalars, until a disk is full: that costs figures, not the run.

    TensorBoard reads files by the seconds in their names, and takes events whose time or step falls
    for the beginning of something new. So where the clock was set back, earlier files get earlier
    names, and no event an earlier time than the one before.

    Args:
        folder: gets the event files.
        first_step: steps done before; what an earlier start wrote of later ones is hidden.
        warn: prints a warning.
    """

    def __init__(self, folder: Path, *, first_step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = None
        before = sorted(folder.glob(_PREFIX + "*"))
        self._time = max((path.stat().st_mtime for path in before), default=0.0)
        _name_before(before, seconds=int(time.time()))
        threading.excepthook = _without_tensorboards(threading.excepthook)
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        except OSError as error:
            self._give_up(first_step, error)

    def write(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Writes figures after so many steps, by tag."""
        if self._writer is None:
            return
        self._time = max(self._time, time.time())
        try:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step, walltime=self._time)
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
            f"warning: {self._folder}: no figures from step {step} on: {error.strerror}; training "
            "goes on"
        )


def _name_before(paths: Sequence[Path], *, seconds: int) -> None:
    """Gives event files names with earlier seconds where theirs are not before these."""
    for place, path in enumerate(reversed(paths), start=1):
        stamp, _, rest = path.name.removeprefix(_PREFIX).partition(".")
        if stamp.isdigit() and int(stamp) > seconds - place:
            path.rename(path.with_name(f"{_PREFIX}{seconds - place:010d}.{rest}"))


def _without_tensorboards(hook: _Hook) -> _Hook:
    """The hook, but for what TensorBoard's thread raises: whoever writes next is told of it."""
    if getattr(hook, "passes_over_tensorboard", False):
        return hook

    def handle(arguments: threading.ExceptHookArgs) -> None:
        is_its = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_its and issubclass(arguments.exc_type, OSError)):
            hook(arguments)

    handle.passes_over_tensorboard = True  # type: ignore[attr-defined]
    return handle

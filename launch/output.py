"""What commands print: its reader may leave, and names from elsewhere do nothing to a terminal."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from data_pipelines.errors import UserError

# A rank with loaders, checkpoints and connections to hundreds of others has less.
_FILES_NEEDED = 4096
_SHARED = Path("/dev/shm")
_SHARED_NEEDED = 16 << 20


class _ForgivingFile(io.FileIO):
    """Drops what cannot be written: nobody reads it any more, or a disk is full."""

    def write(self, data, /):  # type: ignore[no-untyped-def]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def told(error: Exception) -> str | None:
    """One line about what a user can mend, a limit of the machine included; None: nothing is.

    Args:
        error: with those that led to it.
    """
    line = str(error) if isinstance(error, UserError) else None
    limit = next(filter(None, map(_limit_reached, _with_causes(error))), None)
    return "; ".join(filter(None, (line, limit))) or None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _limit_reached(error: BaseException) -> str | None:
    """Libraries raise what they like: the words of the system tell."""
    number, text = getattr(error, "errno", None), str(error)
    if number == errno.EMFILE or os.strerror(errno.EMFILE) in text:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"no more than {soft} files may be open in this process (ulimit -n, at most {hard} "
            f"here); {_FILES_NEEDED} are enough"
        )
    is_full = number == errno.ENOSPC and getattr(error, "filename", None) is None
    if (is_full or "shared memory" in text) and _SHARED.is_dir():
        room = shutil.disk_usage(_SHARED)
        if room.free < _SHARED_NEEDED:
            return (
                f"{_SHARED}, where processes share memory, has {room.free} of {room.total} bytes "
                f"free; {_SHARED_NEEDED} are enough (docker run --shm-size=64m), or no loader "
                "processes (data.workers: 0)"
            )
    return None


def escaped(text: str, *, keeps: str = "") -> str:
    r"""Text whose unprintable characters are written as in Python, `\x1b`, but for those kept."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in keeps else repr(sign)[1:-1] for sign in text
    )


class _Escaping:
    """A stream that shows control characters, of names for example, instead of obeying them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes lines; one may begin anew, as that of a progress bar does."""
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + escaped(text[len(start) :], keeps="\n\t"))
        return len(text)


@contextmanager
def calm_output() -> Iterator[None]:
    """Inside, no write to stdout or stderr fails: `msam-scale train … | head` trains to the end.

    Nor does what is written control the terminal: names come from files of others.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream and cast(TextIO, _Escaping(_forgiving(stream, own)))
        for stream, own in zip(before, (sys.__stdout__, sys.__stderr__), strict=True)
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO, own: TextIO | None) -> TextIO:
    """The stream on the same descriptor; one that is not the process's `own` stays as it is."""
    if stream is not own:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_ForgivingFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )

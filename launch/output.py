"""Output that its reader may leave: a closed pipe or terminal silences it, and ends nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _ForgivingFile(io.FileIO):
    """Drops what cannot be written: nobody reads it any more, or a disk is full."""

    def write(self, data, /):  # type: ignore[no-untyped-def]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Inside, no write to stdout or stderr fails: `msam-scale train … | head` trains to the end."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_forgiving, before, (sys.__stdout__, sys.__stderr__))
    try:
        yield
    finally:
        for stream in {sys.stdout, sys.stderr} - {None}:
            stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO, own: TextIO | None) -> TextIO:
    """The stream on the same descriptor; one that is not the process's `own` stays as it is."""
    if stream is not own or stream is None:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_ForgivingFile(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )

"""What commands print: its reader may leave, and names from elsewhere do nothing to a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class _ForgivingFile(io.FileIO):
    """Drops what cannot be written: nobody reads it any more, or a disk is full."""

    def write(self, data, /):  # type: ignore[no-untyped-def]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


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

"""Shards that a command of the shell writes to its standard output."""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from data_pipelines.errors import UserError
from data_pipelines.sources.interface import ByteRange, NoRangesError, StoredFile

PREFIX = "pipe:"
_PLACEHOLDER = "{name}"
_PIECE_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = 500


class CommandPipe:
    """Reads whole files through a command, as `pipe:aws s3 cp s3://bucket/train/{name} -`.

    `{name}` stands for the file, quoted for the shell. A command that fails is not tried again: it
    knows best which of its failures pass, and most have an option for it.
    """

    max_gap_bytes = 0

    def __init__(self, location: str) -> None:
        """Starts nothing yet.

        Args:
            location: `pipe:` and the command.

        Raises:
            UserError: The command does not say where the name of the file goes.
        """
        command = location.removeprefix(PREFIX).strip()
        if _PLACEHOLDER not in command:
            raise UserError(
                f"{location}: says nowhere which file; write {_PLACEHOLDER} in its place, as "
                f"`{PREFIX}aws s3 cp s3://bucket/train/{_PLACEHOLDER} -`"
            )
        self._command = command

    def where(self, name: str) -> str:
        """Returns the command that writes a file."""
        return f"{PREFIX}{self._command.replace(_PLACEHOLDER, shlex.quote(name))}"

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Cannot: a command writes whole files.

        Raises:
            NoRangesError: Always.
        """
        where = self.where(ranges[0].file.name)
        raise NoRangesError(
            f"{where}: a command gives whole shards only: give a cache_dir and a cache_limit that "
            "holds the largest of them, on a disk that is not full"
        )

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields what the command writes.

        Raises:
            UserError: It fails, or writes another number of bytes.
        """
        where = self.where(name)
        position = 0
        with tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                where.removeprefix(PREFIX),
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                start_new_session=True,
            )
            assert process.stdout is not None
            try:
                while piece := process.stdout.read(_PIECE_BYTES):
                    position += len(piece)
                    yield piece
                code = process.wait()
            finally:
                process.stdout.close()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if code:
                raise UserError(f"{where}: failed with exit code {code}: {_tail(messages)}")
        if num_bytes is not None and position != num_bytes:
            raise UserError(
                f"{where}: wrote {position} bytes, but the file had {num_bytes} when it was indexed"
            )

    def report_damage(self, file: StoredFile) -> bool:
        """Says that running the command again may give the right bytes."""
        return True

    def close(self) -> None:
        """Has nothing open."""


def _tail(messages: IO[bytes]) -> str:
    size = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, size - _MAX_MESSAGE_BYTES))
    text = messages.read().decode("utf-8", errors="replace").strip()
    return " ".join(text.split()) or "it says nothing"

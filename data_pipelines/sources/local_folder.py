"""Shards in a folder of this machine, or of a file system that is mounted on it."""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipelines.durable_files import pieces_of_file
from data_pipelines.errors import UserError
from data_pipelines.sources.interface import ByteRange, StoredFile
from data_pipelines.sources.positioned_reads import read_at

# Skipping less than this costs more than reading it; tar headers and padding are below it.
_MAX_GAP_BYTES = 4096


class LocalFolder:
    """Reads byte ranges of local files and keeps the most recently used ones open.

    Files are opened on first use and read by position (`pread`), never through a shared file
    position; so an instance works before and after a fork, and a pickled one starts with none open.
    """

    max_gap_bytes = _MAX_GAP_BYTES

    def __init__(self, directory: Path, *, max_open: int = 32) -> None:
        """Opens nothing yet.

        Args:
            directory: The folder.
            max_open: How many files to keep open at most.
        """
        self._directory = directory
        self._max_open = max_open
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Callable[[Path], "LocalFolder"], tuple[Path]]:
        return functools.partial(LocalFolder, max_open=self._max_open), (self._directory,)

    def __del__(self) -> None:
        self.close()

    def where(self, name: str) -> str:
        """Returns the path of a file."""
        return str(self._directory / name)

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Yields the bytes of ranges, one after the other.

        Raises:
            UserError: A file is gone or ends before a range does.
        """
        for wanted in ranges:
            file, start, stop = wanted
            try:
                content = read_at(self._descriptor(file.name), start=start, stop=stop)
            except OSError as error:
                raise UserError(f"{self.where(file.name)}: cannot be read: {error}") from error
            if len(content) < stop - start:
                raise UserError(
                    f"{self.where(file.name)}: cut short: ends at byte {start + len(content)}, "
                    f"but a sample reaches to byte {stop}"
                )
            yield content

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields a whole file, a bounded piece at a time.

        Raises:
            UserError: It is missing or has another size.
        """
        path = self._directory / name
        try:
            size = path.stat().st_size
            if num_bytes is not None and size != num_bytes:
                raise UserError(
                    f"{path}: {size} bytes, but {num_bytes} when it was indexed: changed or cut "
                    "short; restore it"
                )
            yield from pieces_of_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from error

    def report_damage(self, file: StoredFile) -> bool:
        """Says that a local file stays as it is."""
        return False

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, name: str) -> int:
        if name in self._descriptors:
            self._descriptors.move_to_end(name)
            return self._descriptors[name]
        while len(self._descriptors) >= self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        descriptor = os.open(self._directory / name, os.O_RDONLY)
        self._descriptors[name] = descriptor
        return descriptor

"""What every place that holds shards can do."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from data_pipelines.errors import UserError


class StoredFile(NamedTuple):
    """A shard as the index knows it.

    Attributes:
        name: Its file name in the folder of the split.
        num_bytes: Its size.
        sha256: Of its content, in hexadecimal.
    """

    name: str
    num_bytes: int
    sha256: str


class ByteRange(NamedTuple):
    """The bytes start … stop - 1 of a shard."""

    file: StoredFile
    start: int
    stop: int


class NoRangesError(UserError):
    """The shards can only be read as a whole here."""


class ShardSource(Protocol):
    """Reads the files of one folder, wherever it is.

    A source is sent to worker processes and used after a fork: it opens files and connections on
    first use in a process and shares none with another one. It is used by one thread.
    """

    @property
    def max_gap_bytes(self) -> int:
        """Two ranges with at most so many bytes between them are better read as one."""
        ...

    def where(self, name: str) -> str:
        """Returns the full location of a file, for messages; without passwords."""
        ...

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Yields the bytes of ranges, in the order asked for; memory holds a bounded part of them.

        Raises:
            UserError: A file is missing, cannot be reached, is not the one that was indexed, or
                ends before a range does.
            NoRangesError: Only whole files can be read here.
        """
        ...

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields a whole file, a bounded piece at a time.

        Args:
            name: Of the file in the folder; may be in a folder inside.
            num_bytes: Its size, where that is known.

        Raises:
            UserError: It is missing, cannot be reached, or has another size.
        """
        ...

    def report_damage(self, file: StoredFile) -> bool:
        """Is told that what was read of a file is not what was indexed.

        Returns:
            Whether reading it again may give something else, because it went over a network or was
            kept in a cache.
        """
        ...

    def close(self) -> None:
        """Closes files and connections; reading opens them again."""
        ...


@runtime_checkable
class ListedFolder(Protocol):
    """What places can do, besides, that know which files they have."""

    def names(self, pattern: str) -> list[str]:
        """Returns the names of the files that a pattern with `*` fits, sorted.

        Raises:
            UserError: The place cannot be reached.
        """
        ...

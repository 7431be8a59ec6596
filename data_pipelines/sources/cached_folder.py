"""A folder of shards, read through a cache of whole shards."""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from data_pipelines.sources.interface import ByteRange, ShardSource, StoredFile
from data_pipelines.sources.positioned_reads import read_at
from data_pipelines.sources.shard_cache import ShardCache, WrongContentError

_logger = logging.getLogger("data_pipelines")


class CachedFolder:
    """Fetches a shard when something of it is asked for, and reads it from the local disk.

    What cannot be kept is read from where it is. So is a shard whose checksum is wrong even when it
    was fetched twice: the checksums of its samples tell which of them are damaged.
    """

    # As for local files, which is what is read in the end.
    max_gap_bytes = 4096

    def __init__(self, source: ShardSource, *, cache: ShardCache) -> None:
        """Fetches nothing yet.

        Args:
            source: Where the shards are.
            cache: Where they are kept.
        """
        self._source = source
        self._cache = cache
        self._not_as_indexed: set[str] = set()
        self._fetched_again: set[str] = set()

    def where(self, name: str) -> str:
        """Returns where a file really is."""
        return self._source.where(name)

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Yields the bytes of ranges.

        Raises:
            UserError: See `ShardSource.read_ranges`.
        """
        for file, of_file in groupby(ranges, key=attrgetter("file")):
            yield from self._read(file, list(of_file))

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields a whole file from where it really is.

        Raises:
            UserError: See `ShardSource.pieces`.
        """
        return self._source.pieces(name, num_bytes=num_bytes)

    def report_damage(self, file: StoredFile) -> bool:
        """Throws the shard away, so that it is fetched again, but only once in a process."""
        if file.sha256 in self._not_as_indexed:
            return self._source.report_damage(file)
        if file.sha256 in self._fetched_again:
            return False
        self._fetched_again.add(file.sha256)
        self._cache.remove(file)
        return True

    def close(self) -> None:
        """Closes the connections; cached files are open only while they are read."""
        self._source.close()

    def _read(self, file: StoredFile, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        # Opened for each group of ranges: that costs little beside decoding, and a shard that is
        # thrown away must not take disk space because a process keeps it open.
        descriptor = self._open(file)
        if descriptor is None:
            yield from self._source.read_ranges(ranges)
            return
        try:
            for _, start, stop in ranges:
                # The whole shard is here; only an index that contradicts itself asks for more.
                content = read_at(descriptor, start=start, stop=stop)
                assert len(content) == stop - start, (file, start, stop)
                yield content
        finally:
            os.close(descriptor)

    def _open(self, file: StoredFile) -> int | None:
        if file.sha256 in self._not_as_indexed:
            return None
        for is_last in (False, True):
            try:
                return self._cache.open(
                    file, lambda: self._source.pieces(file.name, num_bytes=file.num_bytes)
                )
            except WrongContentError as error:
                _logger.warning(
                    "%s: %s; %s",
                    self.where(file.name),
                    error,
                    "it is read sample by sample" if is_last else "fetching it again",
                )
        self._not_as_indexed.add(file.sha256)
        return None

"""The open shards of one process."""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex


class ShardFiles:
    """Reads byte ranges of shards and keeps the most recently used ones open.

    Files are opened on first use and read by position (`pread`), never through a shared file
    position; so an instance works before and after a fork, and a pickled one starts with none open.
    """

    def __init__(self, index: SampleIndex, *, max_open: int) -> None:
        """Opens nothing yet.

        Args:
            index: The split whose shards are read.
            max_open: How many files to keep open at most.
        """
        self._index = index
        self._max_open = max_open
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __reduce__(self) -> tuple[Callable[[SampleIndex], "ShardFiles"], tuple[SampleIndex]]:
        return functools.partial(ShardFiles, max_open=self._max_open), (self._index,)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, shard: int, *, start: int, stop: int) -> bytes:
        """Returns the bytes start … stop - 1 of a shard.

        Raises:
            UserError: The shard is gone, was changed, or ends before `stop`.
        """
        try:
            descriptor = self._descriptor(shard)
            content = os.pread(descriptor, stop - start, start)
            # One call gives at most 2 GiB, and over a network maybe less than asked.
            while len(content) < stop - start:
                more = os.pread(descriptor, stop - start - len(content), start + len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise UserError(f"{self._index.shard_path(shard)}: cannot be read: {error}") from error
        if len(content) < stop - start:
            raise UserError(
                f"{self._index.shard_path(shard)}: cut short: ends at byte {start + len(content)}, "
                f"but a sample reaches to byte {stop}"
            )
        return content

    def _descriptor(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        while len(self._descriptors) >= self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        descriptor = os.open(self._index.shard_path(shard), os.O_RDONLY)
        self._descriptors[shard] = descriptor
        return descriptor

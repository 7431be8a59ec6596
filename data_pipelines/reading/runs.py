"""Plans which samples are read together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Skipping less than this costs more than reading it; tar headers and padding are below it.
_MAX_GAP_BYTES = 4096
# Bounds the memory of one read.
_MAX_RUN_BYTES = 8 << 20


@dataclass
class Run:
    """Samples that are read in one go: their places in the request, and the bytes they span."""

    shard: int
    start: int
    stop: int
    places: list[int]


def plan_runs(
    shards: NDArray[np.int64], *, starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> Iterator[Run]:
    """Joins neighbours in a shard into runs, sorted by where they lie.

    Args:
        shards: Shard of each requested sample, (samples,).
        starts: First byte of each, likewise.
        stops: Byte after the last of each, likewise.
    """
    run: Run | None = None
    for place in np.lexsort((starts, shards)).tolist():
        shard, start, stop = int(shards[place]), int(starts[place]), int(stops[place])
        if (
            run is not None
            and shard == run.shard
            and start <= run.stop + _MAX_GAP_BYTES
            and stop <= run.start + _MAX_RUN_BYTES
        ):
            run.stop = max(run.stop, stop)
            run.places.append(place)
            continue
        if run is not None:
            yield run
        run = Run(shard, start, stop, [place])
    if run is not None:
        yield run

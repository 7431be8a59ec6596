"""Plans which samples are read together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    shards: NDArray[np.int64],
    *,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    max_gap_bytes: int,
) -> Iterator[Run]:
    """Joins neighbours in a shard into runs, sorted by where they lie.

    Args:
        shards: Shard of each requested sample, (samples,).
        starts: First byte of each, likewise.
        stops: Byte after the last of each, likewise.
        max_gap_bytes: Bytes between neighbours that may be read along with them.
    """
    run: Run | None = None
    places = np.lexsort((starts, shards))
    for place, shard, start, stop in zip(
        places.tolist(),
        shards[places].tolist(),
        starts[places].tolist(),
        stops[places].tolist(),
        strict=True,
    ):
        if (
            run is not None
            and shard == run.shard
            and start <= run.stop + max_gap_bytes
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

"""Which samples stand in for a damaged one."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order.mixing import derive_key

_MOST_STAND_INS = 16


def stand_ins(
    sample_id: int,
    *,
    seed: int,
    epoch: int,
    num_samples: int,
    lengths: NDArray[np.uint32] | None,
) -> Iterator[int]:
    """Yields samples to take for a damaged one; the next where one is damaged itself.

    They follow from the arguments alone. All samples are equally likely, except that a text is
    replaced by none longer than itself: batches are filled up to the longest of their texts by the
    index, before any is read.

    Args:
        sample_id: The damaged sample.
        seed: Of the stand-ins.
        epoch: In another epoch others stand in, so that none counts twice all the time.
        num_samples: How many samples there are.
        lengths: For text: how many tokens each sample has, (samples,).
    """
    candidates: NDArray[np.int64] | None = None
    if lengths is not None:
        candidates = np.flatnonzero(lengths <= lengths[sample_id])
    num_candidates = num_samples if candidates is None else len(candidates)
    for attempt in range(_MOST_STAND_INS):
        place = derive_key("standin", seed, epoch, sample_id, attempt) % num_candidates
        stand_in = place if candidates is None else int(candidates[place])
        if stand_in != sample_id:
            yield stand_in

"""Whether the samples of a split are stored in an order that orders by shard can mix."""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex

# Neighbours of one class beyond chance, as a share of what a sorted split has.
_MOST_EXCESS = 0.05
_DEVIATIONS = 5


def check_classes_are_mixed(index: SampleIndex, *, order: str) -> None:
    """Refuses an order by shard where the shards hold their samples class by class.

    A split written in a recorded shuffle is accepted. Any other is judged by its labels: in
    shuffled samples, two neighbours are of one class as often as two that are drawn.

    Args:
        index: The split.
        order: What the user asked for, for the message.

    Raises:
        UserError: Neighbours are of one class clearly more often than by chance.
    """
    if index.meta.preshuffle_seed is not None:
        return
    excess, chance = class_excess(np.asarray(index.samples["label"]))
    noise = math.sqrt(chance / max(1, index.num_samples - 1)) / max(1e-12, 1 - chance)
    if excess > _MOST_EXCESS + _DEVIATIONS * noise:
        raise UserError(
            f"order: {order} takes a step's samples from a few shards at a time, but "
            f"{index.directory} holds its samples sorted by class ({excess:.0%} of the way from "
            "shuffled to sorted); use the order global, or write the shards anew in shuffled order"
        )


def class_excess(labels: NDArray[np.int32]) -> tuple[float, float]:
    """Returns how sorted labels are, from 0 (by chance) to 1, and the chance of an equal pair.

    The first is Cohen's kappa of each label with the next.
    """
    if labels.size < 2:
        return 0.0, 1.0
    shares = np.bincount(labels) / labels.size
    chance = float((shares**2).sum())
    if chance >= 1:
        return 0.0, 1.0
    equal = float((labels[1:] == labels[:-1]).mean())
    return (equal - chance) / (1 - chance), chance

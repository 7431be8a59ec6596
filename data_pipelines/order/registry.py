"""The sample orders by name, and what each of them offers."""

import re
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.order.class_mixing import check_classes_are_mixed
from data_pipelines.order.global_order import GlobalOrder
from data_pipelines.order.lane_order import LaneOrder
from data_pipelines.order.window_order import WindowOrder
from data_pipelines.registry import lookup

# A window of 64 shards of 1000 samples mixes well and is 7 GB of ImageNet, which fits a cache.
_SHARDS_PER_WINDOW = 64
_MOST_LANES = 256
_SHARDS_PER_LANE_WINDOW = 2


class SampleOrder(Protocol):
    """The order of the samples in every epoch.

    A pure function of the seed and the data set: neither ranks nor workers nor what was asked
    before may enter.
    """

    @property
    def identity(self) -> str:
        """The setting that gives this order, with all its parameters; part of what a run is."""
        ...

    def sample_ids(self, epoch: int, *, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the ids at places start … stop - 1 of an epoch; over an epoch each comes once.

        The mini-batch of step s of the epoch is at places s * batch_size … (s + 1) * batch_size - 1
        and what comes after the last full mini-batch is left out.
        """
        ...


class OrderFactory(Protocol):
    """Makes the order of an index's samples."""

    def __call__(
        self, index: SampleIndex, *, seed: int, batch_size: int, parameters: Mapping[str, int]
    ) -> SampleOrder: ...


def _global(
    index: SampleIndex, *, seed: int, batch_size: int, parameters: Mapping[str, int]
) -> SampleOrder:
    _check_parameters("global", parameters, known=())
    return GlobalOrder.for_index(index, seed=seed)


def _window(
    index: SampleIndex, *, seed: int, batch_size: int, parameters: Mapping[str, int]
) -> SampleOrder:
    _check_parameters("window", parameters, known=("shards",))
    order = WindowOrder(
        index.shard_sizes,
        seed=seed,
        shards_per_window=parameters.get("shards", _SHARDS_PER_WINDOW),
    )
    check_classes_are_mixed(index, order=order.identity)
    return order


def _lanes(
    index: SampleIndex, *, seed: int, batch_size: int, parameters: Mapping[str, int]
) -> SampleOrder:
    _check_parameters("lanes", parameters, known=("lanes", "shards"))
    order = LaneOrder(
        index.shard_sizes,
        seed=seed,
        batch_size=batch_size,
        num_lanes=parameters.get("lanes", default_num_lanes(batch_size)),
        shards_per_window=parameters.get("shards", _SHARDS_PER_LANE_WINDOW),
    )
    check_classes_are_mixed(index, order=order.identity)
    return order


ORDERS: dict[str, OrderFactory] = {"global": _global, "window": _window, "lanes": _lanes}


def sample_order(order: str, *, index: SampleIndex, seed: int, batch_size: int) -> SampleOrder:
    """Returns the order of the samples of `index`.

    Args:
        order: `global`, one permutation of all samples; `window`, or `window:shards=64`, where the
            samples of so many shards are mixed with each other; `lanes`, or
            `lanes:lanes=256,shards=2`, where each step takes from so many lanes, in which the
            samples of so many shards are mixed. Without a number of lanes it is the largest divisor
            of the batch size that is at most 256.
        index: The split.
        seed: In [0, 2**63).
        batch_size: Samples of a mini-batch over all ranks.

    Raises:
        UserError: There is no such order or parameter, a number is out of range, or the split is
            sorted by class and the order cannot mix it.
    """
    factory, parameters = _parsed(order)
    return factory(index, seed=seed, batch_size=batch_size, parameters=parameters)


def check_order(order: str) -> None:
    """Refuses what no data would make an order of.

    Raises:
        UserError: There is no order of this name, or its parameters cannot be read.
    """
    _parsed(order)


def _parsed(order: str) -> tuple[OrderFactory, dict[str, int]]:
    name, _, rest = order.partition(":")
    factory = lookup(ORDERS, name, kind="order")
    parameters: dict[str, int] = {}
    for setting in rest.split(",") if rest else ():
        found = re.fullmatch(r"\s*(\w+)=([0-9]{1,9})\s*", setting)
        if found is None or found[1] in parameters:
            raise UserError(
                f"order: {order}: {setting!r} is not a parameter; written as in "
                "lanes:lanes=256,shards=2, each once"
            )
        parameters[found[1]] = int(found[2])
    return factory, parameters


def default_num_lanes(batch_size: int) -> int:
    """Returns the largest divisor of the batch size that is at most 256."""
    return next(lanes for lanes in range(_MOST_LANES, 0, -1) if batch_size % lanes == 0)


def _check_parameters(name: str, parameters: Mapping[str, int], *, known: tuple[str, ...]) -> None:
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        what = f"only {', '.join(known)}" if known else "none"
        raise UserError(f"order: {name} has no parameter {', '.join(unknown)}, {what}")

"""The sample orders by name, and what each of them offers."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.index import SampleIndex
from data_pipelines.order.global_order import GlobalOrder
from data_pipelines.registry import lookup


class SampleOrder(Protocol):
    """The order of the samples in every epoch.

    A pure function of the seed and the data set: neither ranks nor workers nor what was asked
    before may enter.
    """

    def sample_ids(self, epoch: int, *, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the ids at places start … stop - 1 of an epoch; over an epoch each comes once."""
        ...


class OrderFactory(Protocol):
    """Makes the order of an index's samples."""

    def __call__(self, index: SampleIndex, *, seed: int) -> SampleOrder: ...


ORDERS: dict[str, OrderFactory] = {"global": GlobalOrder.for_index}


def sample_order(name: str, *, index: SampleIndex, seed: int) -> SampleOrder:
    """Returns the order called `name` for the samples of `index`.

    Raises:
        UserError: There is no such order, or the seed is not in [0, 2**63).
    """
    return lookup(ORDERS, name, kind="order")(index, seed=seed)

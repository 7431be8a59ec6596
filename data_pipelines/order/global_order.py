"""The order `global`: every epoch is a new permutation of the whole data set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.order.mixing import checked_seed, derive_key
from data_pipelines.order.permutation import Permutation


@dataclass(frozen=True)
class GlobalOrder:
    """A pseudo-random permutation of all samples for each epoch, from (seed, epoch, num_samples).

    Raises:
        UserError: The seed is not in [0, 2**63), or there are no samples.
    """

    seed: int
    num_samples: int

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if self.num_samples < 1:
            raise UserError(f"num_samples: {self.num_samples}, but an order needs samples")

    @classmethod
    def for_index(cls, index: SampleIndex, *, seed: int) -> "GlobalOrder":
        """Returns the order of an index's samples."""
        return cls(seed=seed, num_samples=index.num_samples)

    @property
    def identity(self) -> str:
        """The order as a setting."""
        return "global"

    def sample_ids(self, epoch: int, *, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the samples at places start … stop - 1 of an epoch.

        Time and memory depend on stop - start alone.
        """
        assert 0 <= start <= stop <= self.num_samples, (start, stop, self.num_samples)
        permutation = Permutation(self.num_samples, key=derive_key("order", self.seed, epoch))
        return permutation(np.arange(start, stop, dtype=np.int64))

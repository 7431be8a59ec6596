"""Losses that stand out from those reported before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from statistics import median
from typing import Any

_WINDOW = 50
# Of fewer losses the spread means little.
_FEWEST = 10
# The standard deviation of a normal distribution in its median absolute deviations.
_DEVIATIONS = 1.4826
# A loss that has settled would make each ripple a spike: below this part of it nothing is one.
_LEAST_SPREAD = 1e-3


class LossSpikes:
    """Compares each reported loss with the median of the reported ones before it.

    Args:
        factor: robust standard deviations above the median from which on a loss is a spike; None:
            none ever is.

    Attributes:
        count: spikes so far.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self.count = 0

    def see(self, loss: float) -> str | None:
        """Takes a reported loss; one that is not finite is a skipped step and no spike.

        Returns:
            What stands out, in words, if the loss is a spike.
        """
        if self._factor is None or not isfinite(loss):
            return None
        words = None
        if len(self._losses) >= _FEWEST:
            middle = median(self._losses)
            deviation = median(abs(one - middle) for one in self._losses)
            spread = max(_DEVIATIONS * deviation, _LEAST_SPREAD * abs(middle))
            if loss - middle > self._factor * spread:
                self.count += 1
                words = (
                    f"loss {loss:.4g} is a spike: the median of the last {len(self._losses)} "
                    f"reported ones is {middle:.4g}, their robust standard deviation {spread:.2g}"
                )
        self._losses.append(loss)
        return words

    def figures(self) -> dict[str, int]:
        """The metric `loss_spikes`, where spikes are looked for."""
        return {} if self._factor is None else {"loss_spikes": self.count}

    def state(self) -> dict[str, Any]:
        """The window and the count, for a checkpoint."""
        return {"losses": list(self._losses), "count": self.count}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Takes what `state` gave; of a checkpoint without it, an empty window."""
        content = state or {"losses": [], "count": 0}
        self._losses = deque(content["losses"], maxlen=_WINDOW)
        self.count = content["count"]

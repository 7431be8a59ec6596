"""Means and standard deviations that images are normalised with, by name."""

from typing import NamedTuple


class Statistics(NamedTuple):
    """Per channel, of pixels scaled to [0, 1]; None leaves them as they are."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


STATISTICS: dict[str, Statistics] = {
    "none": Statistics(None, None),
    # To [-1, 1]: the Inception and vision transformer models of Google.
    "inception": Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Those of the training sets, as google-research/sam has them.
    "cifar10": Statistics(
        (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
    ),
    "cifar100": Statistics(
        (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)
    ),
}

"""Mixup and cutmix: which samples of a micro-batch are mixed with which, and how much.

Drawn for a whole micro-batch S_j, so that it does not matter which rank holds which part of it. As
in the papers, all its samples share one mixing weight, and their partners are the same micro-batch
in a random order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.order.mixing import checked_seed, derive_key
from data_pipelines.order.permutation import Permutation
from data_pipelines.transforms.random_words import below, uniform

# Weights are rounded to so many bits: the quantile function of another version of SciPy may differ
# in the last place, and the run must not.
_WEIGHT_STEPS = 1 << 24


class Box(NamedTuple):
    """Rows top … bottom - 1 and columns left … right - 1 of an image."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class MixingDraw:
    """How the samples of a micro-batch are mixed.

    Attributes:
        weight: λ: how much of a mixed sample and its label is the sample itself; its partner is the
            rest.
        partners: Position in the micro-batch of each position's partner, int64 (samples,).
        box: For cutmix, the part that comes from the partner; None for mixup.
    """

    weight: float
    partners: NDArray[np.int64]
    box: Box | None


def mixup_draws(
    seed: int, epoch: int, step: int, micro_batch: int, *, num_samples: int, alpha: float
) -> MixingDraw:
    """Draws a mixup: "mixup: Beyond Empirical Risk Minimization" (Zhang et al., 2018).

    A pure function of its arguments.

    Args:
        seed: Of the run, in [0, 2**63).
        epoch: Of the step.
        step: Within the epoch, or of the run; whichever, always the same.
        micro_batch: Its number j in the step.
        num_samples: How many samples S_j has.
        alpha: The weight is distributed as Beta(alpha, alpha).

    Raises:
        UserError: The seed or alpha is out of range.
    """
    keys = _Keys(checked_seed(seed), epoch, step, micro_batch)
    return MixingDraw(
        weight=_beta("mixup", keys, alpha), partners=_partners(keys, num_samples), box=None
    )


def cutmix_draws(
    seed: int,
    epoch: int,
    step: int,
    micro_batch: int,
    *,
    num_samples: int,
    alpha: float,
    height: int,
    width: int,
) -> MixingDraw:
    """Draws a cutmix: "CutMix: Regularization Strategy to Train Strong Classifiers" (Yun, 2019).

    The box has the share 1 - λ of the image, λ distributed as Beta(alpha, alpha), and its centre is
    anywhere; what reaches beyond the image is cut off, and the weight is what is left of the image.

    Args:
        seed: As for `mixup_draws`.
        epoch: As for `mixup_draws`.
        step: As for `mixup_draws`.
        micro_batch: As for `mixup_draws`.
        num_samples: As for `mixup_draws`.
        alpha: As for `mixup_draws`.
        height: Of the images as the model sees them.
        width: Likewise.

    Raises:
        UserError: The seed or alpha is out of range.
    """
    keys = _Keys(checked_seed(seed), epoch, step, micro_batch)
    side = (1 - _beta("cutmix", keys, alpha)) ** 0.5
    rows, columns = int(height * side), int(width * side)
    top = below(derive_key("cutrow", *keys), height) - rows // 2
    left = below(derive_key("cutcol", *keys), width) - columns // 2
    box = Box(
        top=max(0, top),
        left=max(0, left),
        bottom=min(height, top + rows),
        right=min(width, left + columns),
    )
    area = (box.bottom - box.top) * (box.right - box.left)
    return MixingDraw(
        weight=1 - area / (height * width), partners=_partners(keys, num_samples), box=box
    )


class _Keys(NamedTuple):
    seed: int
    epoch: int
    step: int
    micro_batch: int


def _beta(purpose: str, keys: _Keys, alpha: float) -> float:
    from scipy.special import betaincinv  # takes time that runs without mixing need not spend

    if not 0 < alpha < 1e6:
        raise UserError(f"{purpose}: alpha {alpha} is not positive and below a million")
    quantile = uniform(derive_key(purpose, *keys), low=0, high=1)
    return round(float(betaincinv(alpha, alpha, quantile)) * _WEIGHT_STEPS) / _WEIGHT_STEPS


def _partners(keys: _Keys, num_samples: int) -> NDArray[np.int64]:
    return Permutation(num_samples, key=derive_key("partner", *keys))(np.arange(num_samples))

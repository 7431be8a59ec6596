"""Mixup and cutmix in the loader: every sample comes with its partner.

Partners are drawn for a whole micro-batch, so the partner of a sample may be one that another rank
trains on. It is loaded here too, which makes the result the same on any number of ranks; a partner
that this rank loads anyhow is decoded once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from data_pipelines.errors import UserError
from data_pipelines.order.mixing import derive_key
from data_pipelines.transforms import MixingDraw, cutmix_draws, mixup_draws


class MixedBatch(NamedTuple):
    """A batch with the partners of its samples; all first dimensions are the samples.

    Attributes:
        images: uint8, (samples, height, width, channels).
        labels: int64, (samples,).
        partner_images: As `images`.
        partner_labels: As `labels`.
        weights: How much of a mixed sample is the sample itself, float32 (samples,).
        boxes: Rows top … bottom - 1 and columns left … right - 1 come from the partner, int64
            (samples, 4), as (top, left, bottom, right); an empty box is for mixup, where all pixels
            are mixed.
    """

    images: torch.Tensor
    labels: torch.Tensor
    partner_images: torch.Tensor
    partner_labels: torch.Tensor
    weights: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class SampleMixing:
    """Whether and how samples are mixed.

    Where both are wanted, each micro-batch gets one of them, either with the same chance.

    Attributes:
        mixup_alpha: Mixup with weights distributed as Beta(alpha, alpha); None is without.
        cutmix_alpha: Cutmix, likewise.

    Raises:
        UserError: Neither is wanted, or an alpha is not positive.
    """

    mixup_alpha: float | None = None
    cutmix_alpha: float | None = None

    def __post_init__(self) -> None:
        if self.mixup_alpha is None and self.cutmix_alpha is None:
            raise UserError("mixing: neither mixup nor cutmix is given an alpha; leave it out")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise UserError(f"mixing: {name} {value} is not positive and below a million")

    def draw(
        self,
        seed: int,
        *,
        epoch: int,
        step: int,
        micro_batch: int,
        num_samples: int,
        image_size: tuple[int, int],
    ) -> MixingDraw:
        """Draws for a micro-batch; a pure function of its arguments.

        Args:
            seed: Of the run.
            epoch: Of the step.
            step: Over all epochs.
            micro_batch: Its number in the step.
            num_samples: How many samples it has.
            image_size: (height, width) of the images as the model sees them.
        """
        keys = (seed, epoch, step, micro_batch)
        takes_cutmix = self.mixup_alpha is None
        if self.mixup_alpha is not None and self.cutmix_alpha is not None:
            takes_cutmix = derive_key("mixwhich", *keys) & 1 == 1
        if takes_cutmix:
            assert self.cutmix_alpha is not None
            height, width = image_size
            return cutmix_draws(
                *keys, num_samples=num_samples, alpha=self.cutmix_alpha, height=height, width=width
            )
        assert self.mixup_alpha is not None
        return mixup_draws(*keys, num_samples=num_samples, alpha=self.mixup_alpha)


def mixed_batch(images: torch.Tensor, labels: torch.Tensor, *, draw: MixingDraw) -> MixedBatch:
    """Puts together what was loaded.

    Args:
        images: The samples, and then their partners.
        labels: Likewise.
        draw: What was drawn for the micro-batch.
    """
    num_samples = len(labels) // 2
    box = (0, 0, 0, 0) if draw.box is None else draw.box
    return MixedBatch(
        images=images[:num_samples],
        labels=labels[:num_samples],
        partner_images=images[num_samples:],
        partner_labels=labels[num_samples:],
        weights=torch.full((num_samples,), draw.weight, dtype=torch.float32),
        boxes=torch.tensor(box, dtype=torch.int64).expand(num_samples, 4),
    )

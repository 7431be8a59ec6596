"""Mixes images and labels on the device, with the partners that were loaded beside them.

Weights and boxes come as tensors, one entry a sample, so that they travel to the device with the
images and nothing has to wait for them.
"""

import torch

from data_pipelines.errors import UserError


def mix_images(
    images: torch.Tensor, *, partners: torch.Tensor, weights: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Mixes each image with its partner.

    Args:
        images: Floating point, normalised, (samples, channels, height, width).
        partners: The image that each is mixed with, likewise.
        weights: For mixup, how much of the mixed image is the image itself, (samples,).
        boxes: For cutmix, the part that comes from the partner: rows top … bottom - 1 and columns
            left … right - 1, int64 (samples, 4), as (top, left, bottom, right). Samples with an
            empty box are mixed all over, by their weight.

    Returns:
        New images of the same shape, type and layout.
    """
    assert images.shape == partners.shape, (images.shape, partners.shape)
    top, left, bottom, right = boxes[:, :, None, None].unbind(dim=1)
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    # (samples, height, width)
    is_outside = (rows < top) | (rows >= bottom) | (columns < left) | (columns >= right)
    has_box = (top < bottom) & (left < right)
    shares = torch.where(
        has_box, is_outside.to(images.dtype), weights.to(images.dtype)[:, None, None]
    )
    # With a weight of 0 or 1 it is one of the two, bit for bit.
    return torch.lerp(partners, images, shares[:, None])


def soft_targets(
    labels: torch.Tensor,
    *,
    num_classes: int,
    smoothing: float = 0.0,
    partner_labels: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the class probabilities to train towards, smoothed and mixed.

    Label smoothing as in "Rethinking the Inception Architecture" (Szegedy et al., 2016): the share
    `smoothing` is spread over all classes evenly.

    Args:
        labels: Class numbers, int64 (samples,).
        num_classes: How many classes there are.
        smoothing: In [0, 1).
        partner_labels: Those of the partners, likewise; None where nothing is mixed.
        weights: How much of a mixed sample is the sample itself, (samples,); with `partner_labels`.

    Returns:
        float32, (samples, classes); each row sums to 1.

    Raises:
        UserError: `smoothing` is out of range.
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"label smoothing: {smoothing} is not in [0, 1)")
    targets = torch.full(
        (labels.shape[0], num_classes),
        smoothing / num_classes,
        dtype=torch.float32,
        device=labels.device,
    )
    own = targets.new_full((labels.shape[0], 1), 1 - smoothing)
    if partner_labels is None:
        assert weights is None, "nothing to mix"
        return targets.scatter_add_(1, labels[:, None], own)
    assert weights is not None, "mixed by how much?"
    share = weights.to(torch.float32)[:, None]
    targets.scatter_add_(1, labels[:, None], own * share)
    return targets.scatter_add_(1, partner_labels[:, None], own * (1 - share))

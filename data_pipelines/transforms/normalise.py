"""From bytes to the floats a model takes, on the device."""

import torch

from data_pipelines.errors import UserError
from data_pipelines.transforms.presets import TransformPreset


def normalise(images: torch.Tensor, *, preset: TransformPreset, dtype: torch.dtype) -> torch.Tensor:
    """Scales pixels to [0, 1], subtracts the preset's mean and divides by its std.

    Args:
        images: uint8, (samples, height, width, channels), on any device.
        preset: Gives mean and std.
        dtype: Floating point type of the result. The arithmetic is in float32, or float64 for a
            float64 result, and rounded to narrower types once at the end.

    Returns:
        (samples, channels, height, width) on the same device, channels last in memory.

    Raises:
        UserError: The preset has statistics for another number of channels.
    """
    assert images.dtype == torch.uint8, images.dtype
    assert images.ndim == 4, images.shape
    num_channels = images.shape[3]
    pixels = images.to(torch.float64 if dtype == torch.float64 else torch.float32).div_(255)
    mean = _per_channel("mean", preset.mean, preset.name, num_channels)
    std = _per_channel("std", preset.std, preset.name, num_channels)
    # Channel by channel with plain numbers: tensors of constants would have to be copied to the
    # device, and waited for, at every step.
    for channel in range(num_channels):
        if mean is not None:
            pixels[..., channel].sub_(mean[channel])
        if std is not None:
            pixels[..., channel].div_(std[channel])
    return pixels.to(dtype).permute(0, 3, 1, 2)


def _per_channel(
    what: str, values: tuple[float, ...] | None, preset_name: str, num_channels: int
) -> tuple[float, ...] | None:
    if values is not None and len(values) != num_channels:
        raise UserError(
            f"transform {preset_name!r} has the {what} of {len(values)} channels, "
            f"but the images have {num_channels}"
        )
    return values

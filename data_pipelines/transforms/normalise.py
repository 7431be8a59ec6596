"""From bytes to the floats a model takes, on the device."""

import functools

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
    num_samples, height, width, num_channels = images.shape
    exact_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    # Row by row: a constant for each of the three channels of a pixel would be loaded for each.
    pixels = images.to(exact_dtype).div_(255).reshape(num_samples, height, width * num_channels)
    for what, values in (("mean", preset.mean), ("std", preset.std)):
        if values is None:
            continue
        if len(values) != num_channels:
            raise UserError(
                f"transform {preset.name!r} has the {what} of {len(values)} channels, "
                f"but the images have {num_channels}; "
                f"{preset.name}{',' if ':' in preset.name else ':'}statistics=none works"
            )
        row = _row(values, width, exact_dtype, images.device)
        if what == "mean":
            pixels.sub_(row)
        else:
            pixels.div_(row)
    return pixels.view(images.shape).to(dtype).permute(0, 3, 1, 2)


# Made once: copied to the device at every step, it would have to be waited for at every step.
@functools.lru_cache(maxsize=32)
def _row(
    values: tuple[float, ...], width: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    # Not an inference tensor, whatever mode the first call happens to be in.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device).repeat(width)

"""The transform presets by name."""

from data_pipelines.registry import lookup
from data_pipelines.transforms.identity import NONE
from data_pipelines.transforms.presets import TransformPreset

TRANSFORMS: dict[str, TransformPreset] = {preset.name: preset for preset in (NONE,)}


def transform_preset(name: str) -> TransformPreset:
    """Returns the preset called `name`.

    Raises:
        UserError: There is none; the message gives the nearest names.
    """
    return lookup(TRANSFORMS, name, kind="transform")

"""The preset `none`: images as they are stored, pixels scaled to [0, 1]."""

import numpy as np

from data_pipelines.transforms.presets import Image, TransformPreset


def _unaugmented(image: Image, rng: np.random.Generator) -> Image:
    return image


def _unprepared(image: Image) -> Image:
    return image


NONE = TransformPreset(name="none", augment=_unaugmented, prepare=_unprepared, mean=None, std=None)

"""What is done to an image between the shard and the model."""

from data_pipelines.transforms.normalise import normalise
from data_pipelines.transforms.presets import TransformPreset
from data_pipelines.transforms.registry import TRANSFORMS, transform_preset

__all__ = ["TRANSFORMS", "TransformPreset", "normalise", "transform_preset"]

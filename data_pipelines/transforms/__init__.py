"""What is done to an image between the shard and the model."""

from data_pipelines.transforms.mixed_batches import mix_images, soft_targets
from data_pipelines.transforms.normalise import normalise
from data_pipelines.transforms.presets import BatchAugmentation, TransformPreset
from data_pipelines.transforms.random_words import augmentation_words
from data_pipelines.transforms.registry import TRANSFORMS, transform_preset
from data_pipelines.transforms.sample_mixing import MixingDraw, cutmix_draws, mixup_draws
from data_pipelines.transforms.statistics import STATISTICS

__all__ = [
    "STATISTICS",
    "TRANSFORMS",
    "BatchAugmentation",
    "MixingDraw",
    "TransformPreset",
    "augmentation_words",
    "cutmix_draws",
    "mix_images",
    "mixup_draws",
    "normalise",
    "soft_targets",
    "transform_preset",
]

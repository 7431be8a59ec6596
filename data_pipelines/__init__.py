"""Shards in, micro-batches out.

Which sample is where in which mini-batch, and how it is augmented, is a pure function of the seed,
the step and the data: ranks, workers and restarts do not enter.
"""

from typing import TYPE_CHECKING

from data_pipelines.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from data_pipelines.errors import UserError
    from data_pipelines.index import SampleIndex, index_shards
    from data_pipelines.loading import EvaluationLoader, MicroBatchLoader
    from data_pipelines.order import (
        ORDERS,
        GlobalOrder,
        SampleOrder,
        augmentation_rng,
        sample_order,
    )
    from data_pipelines.preparation import DATASETS, PreparedDataset, prepare
    from data_pipelines.reading import ShardReader
    from data_pipelines.transforms import TRANSFORMS, TransformPreset, normalise, transform_preset

__all__ = [
    "DATASETS",
    "ORDERS",
    "TRANSFORMS",
    "EvaluationLoader",
    "GlobalOrder",
    "MicroBatchLoader",
    "PreparedDataset",
    "SampleIndex",
    "SampleOrder",
    "ShardReader",
    "TransformPreset",
    "UserError",
    "augmentation_rng",
    "index_shards",
    "normalise",
    "prepare",
    "sample_order",
    "transform_preset",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DATASETS": "preparation",
        "EvaluationLoader": "loading",
        "GlobalOrder": "order",
        "MicroBatchLoader": "loading",
        "ORDERS": "order",
        "PreparedDataset": "preparation",
        "SampleIndex": "index",
        "SampleOrder": "order",
        "ShardReader": "reading",
        "TRANSFORMS": "transforms",
        "TransformPreset": "transforms",
        "UserError": "errors",
        "augmentation_rng": "order",
        "index_shards": "index",
        "normalise": "transforms",
        "prepare": "preparation",
        "sample_order": "order",
        "transform_preset": "transforms",
    },
)

"""The loaders: what a rank iterates over."""

from data_pipelines.loading.device_prefetch import DevicePrefetcher
from data_pipelines.loading.evaluation import EvaluationLoader
from data_pipelines.loading.micro_batches import MicroBatchLoader
from data_pipelines.loading.mixing import MixedBatch, SampleMixing

__all__ = ["DevicePrefetcher", "EvaluationLoader", "MicroBatchLoader", "MixedBatch", "SampleMixing"]

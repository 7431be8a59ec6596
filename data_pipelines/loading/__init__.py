"""The loaders: what a rank iterates over."""

from data_pipelines.loading.evaluation import EvaluationLoader
from data_pipelines.loading.micro_batches import MicroBatchLoader

__all__ = ["EvaluationLoader", "MicroBatchLoader"]

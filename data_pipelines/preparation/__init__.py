"""Turns known data sets into shards with an index."""

from data_pipelines.preparation.datasets import DATASETS
from data_pipelines.preparation.prepare import PreparedDataset, prepare

__all__ = ["DATASETS", "PreparedDataset", "prepare"]

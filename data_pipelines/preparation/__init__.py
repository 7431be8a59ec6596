"""Turns known data sets into shards with an index."""

from data_pipelines.preparation.prepare import DATASETS, PreparedDataset, prepare

__all__ = ["DATASETS", "PreparedDataset", "prepare"]

"""The same order for those who bring their own loader: torch's `DataLoader` and `webdataset`."""

from data_pipelines.adapters.torch_dataset import IndexedDataset, MiniBatchSampler
from data_pipelines.adapters.webdataset_stage import ScheduledShards

__all__ = ["IndexedDataset", "MiniBatchSampler", "ScheduledShards"]

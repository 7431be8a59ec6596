"""Samples read by their place in the shards, wherever those are."""

from data_pipelines.reading.bad_samples import BadDataPolicy, BadSample, BadSamples
from data_pipelines.reading.open_split import Split, open_split
from data_pipelines.reading.shard_reader import ShardReader

__all__ = [
    "BadDataPolicy",
    "BadSample",
    "BadSamples",
    "ShardReader",
    "Split",
    "open_split",
]

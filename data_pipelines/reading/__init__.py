"""Samples read by their place in the shards."""

from data_pipelines.reading.shard_reader import ShardReader

__all__ = ["ShardReader"]

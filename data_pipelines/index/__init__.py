"""Where every sample of a split lies: the index beside the shards, how it is built and opened."""

from data_pipelines.index.build import index_shards
from data_pipelines.index.format import IndexMeta, ShardMeta
from data_pipelines.index.sample_index import SampleIndex

__all__ = ["IndexMeta", "SampleIndex", "ShardMeta", "index_shards"]

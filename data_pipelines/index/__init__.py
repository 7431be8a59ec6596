"""Where every sample of a split lies: the index beside the shards, how it is built and opened."""

from data_pipelines.index.build import build_index, index_shards
from data_pipelines.index.format import IndexMeta, ShardMeta, TokenMeta
from data_pipelines.index.sample_index import SampleIndex

__all__ = ["IndexMeta", "SampleIndex", "ShardMeta", "TokenMeta", "build_index", "index_shards"]

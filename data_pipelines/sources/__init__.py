"""Where shards are, and how their bytes are read from there."""

from data_pipelines.sources.interface import (
    ByteRange,
    ListedFolder,
    NoRangesError,
    ShardSource,
    StoredFile,
)
from data_pipelines.sources.local_folder import LocalFolder
from data_pipelines.sources.open_source import (
    is_command,
    is_remote,
    local_path,
    open_source,
)
from data_pipelines.sources.options import SourceOptions

__all__ = [
    "ByteRange",
    "ListedFolder",
    "LocalFolder",
    "NoRangesError",
    "ShardSource",
    "SourceOptions",
    "StoredFile",
    "is_command",
    "is_remote",
    "local_path",
    "open_source",
]

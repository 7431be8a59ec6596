"""Opens a split wherever it is."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.reading.remote_index import fetch_index
from data_pipelines.sources import ShardSource, SourceOptions, is_remote, local_path, open_source
from data_pipelines.sources.redaction import without_secrets


@dataclass(frozen=True)
class Split:
    """A split.

    Attributes:
        index: What it holds.
        source: What reads its shards.
    """

    index: SampleIndex
    source: ShardSource


def open_split(location: str | Path, *, options: SourceOptions | None = None) -> Split:
    """Opens the index of a split and gives what reads its shards; both go to a `ShardReader`.

    Of a remote split the index is fetched, and kept in the `cache_dir`. Remote shards are looked at
    when they are first read: one that is missing or has another size than it was indexed with is
    an error then.

    Args:
        location: As for `open_source`; for a local one also the shards, as `SampleIndex.open`.
        options: How it is read.

    Raises:
        UserError: The split is not there, cannot be reached, is damaged, or is remote and there is
            no `cache_dir` for its index.
    """
    options = options or SourceOptions()
    if not is_remote(location):
        index = SampleIndex.open(local_path(location))
        return Split(index, open_source(index.shards_in, options=options))
    text = os.fspath(location)
    source = open_source(text, options=options)
    if options.cache_dir is None:
        raise UserError(
            f"{without_secrets(text)}: is remote: give a cache_dir, where its index is kept"
        )
    return Split(fetch_index(source, cache_dir=options.cache_dir), source)

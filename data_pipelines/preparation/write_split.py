"""Writes the shards and the index of one split."""

from pathlib import Path
from typing import BinaryIO

import webdataset

from data_pipelines.index import SampleIndex, index_shards
from data_pipelines.preparation.recipe import SplitSource


def write_split(
    source: SplitSource,
    *,
    directory: Path,
    split: str,
    num_classes: int,
    samples_per_shard: int,
    seed: int,
    created_by: str,
) -> SampleIndex:
    """Writes a split into `directory`, byte for byte the same for the same samples.

    Raises:
        UserError: What was written cannot be read back whole.
    """
    directory.mkdir()
    shards: list[Path] = []
    open_files: list[BinaryIO] = []

    # ShardWriter takes a file name for a URL or a shell pipe, and its directory for part of a
    # pattern; it gets open files instead, which it leaves open.
    def open_shard(name: str) -> BinaryIO:
        shards.append(directory / name)
        open_files.append(shards[-1].open("xb"))
        return open_files[-1]

    def close_shard(_: str) -> None:
        open_files.pop().close()

    with webdataset.ShardWriter(
        f"{split}-%06d.tar",
        maxcount=samples_per_shard,
        opener=open_shard,
        post=close_shard,
        verbose=0,
        encoder=False,
        # Whatever would differ from one run or user to the next.
        mtime=0,
        user="data",
        group="data",
        mode=0o444,
    ) as writer:
        for sample in source.samples:
            writer.write({"__key__": sample.key, **sample.columns})
    return index_shards(
        shards,
        split=split,
        num_classes=num_classes,
        preshuffle_seed=seed,
        created_by=created_by,
        expected_samples=source.num_samples,
    )

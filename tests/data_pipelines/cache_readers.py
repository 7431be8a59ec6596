"""Processes that read shards through a cache; imports little, so that they start fast."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

from data_pipelines.sources import ByteRange, SourceOptions, StoredFile, open_source

CONTEXT = multiprocessing.get_context("spawn")


def read_shards(
    url: str,
    cache_dir: Path,
    limit: int,
    files: Sequence[StoredFile],
    results: Queue[bool],
    is_reading: Event | None = None,
) -> None:
    """Reads shards in the order given, each as two ranges, and tells whether all were right."""
    source = open_source(
        url, options=SourceOptions(cache_dir=cache_dir, cache_limit=limit, num_retries=0)
    )
    if is_reading is not None:
        is_reading.set()
    is_right = True
    for file in files:
        middle = file.num_bytes // 2
        ranges = [ByteRange(file, 0, middle), ByteRange(file, middle, file.num_bytes)]
        content = b"".join(source.read_ranges(ranges))
        is_right &= hashlib.sha256(content).hexdigest() == file.sha256
    source.close()
    results.put(is_right)


def start_reading(
    url: str,
    cache_dir: Path,
    limit: int,
    files: Sequence[StoredFile],
    results: Queue[bool],
    is_reading: Event | None = None,
) -> SpawnProcess:
    process = CONTEXT.Process(
        target=read_shards, args=(url, cache_dir, limit, files, results, is_reading)
    )
    process.start()
    return process

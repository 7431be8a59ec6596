"""Checks one shard: its checksum, and every sample in it."""

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.index.format import INDEX_FOLDER, META_FILE, offset_field, size_field
from data_pipelines.sources.file_names import checked_file_name

_MAX_PROBLEMS = 20


class Problem(NamedTuple):
    """Something that is wrong: the file, or the sample in it, and what."""

    where: str
    what: str


@dataclass(frozen=True)
class ShardReport:
    """What a shard holds and what is wrong with it; at most 20 problems, and how many more."""

    num_samples: int
    num_bytes: int
    problems: tuple[Problem, ...]
    num_more_problems: int


def check_shard(index: SampleIndex, shard: int) -> ShardReport:
    """Reads a shard once, and checks and decodes every sample in it."""
    path = index.shard_path(shard)
    found_in = str(index.directory / INDEX_FOLDER / META_FILE)
    first, stop = np.searchsorted(index.samples["shard"], [shard, shard + 1]).tolist()
    num_bytes = 0
    try:
        checked_file_name(index.meta.shards[shard].name, found_in=found_in)
        with path.open("rb") as file, _mapped(file) as view:
            problems = list(_problems(index, shard, view, range(first, stop)))
            num_bytes = len(view)
    except UserError as error:
        problems = [Problem(found_in, str(error))]
    except OSError as error:
        problems = [Problem(str(path), f"cannot be read: {error}")]
    return ShardReport(
        num_samples=stop - first,
        num_bytes=num_bytes,
        problems=tuple(problems[:_MAX_PROBLEMS]),
        num_more_problems=max(0, len(problems) - _MAX_PROBLEMS),
    )


@contextmanager
def _mapped(file: IO[bytes]) -> Iterator[memoryview]:
    if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
        yield memoryview(b"")
        return
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with content, memoryview(content) as view:
        yield view


def _problems(
    index: SampleIndex, shard: int, content: memoryview, sample_ids: range
) -> Iterator[Problem]:
    meta, path = index.meta.shards[shard], str(index.shard_path(shard))
    is_changed = hashlib.sha256(content).hexdigest() != meta.sha256
    if len(content) != meta.bytes:
        yield Problem(path, f"{len(content)} bytes, but {meta.bytes} when it was indexed")
    if len(sample_ids) != meta.num_samples:
        yield Problem(
            path, f"the index lists {len(sample_ids)} samples here but counts {meta.num_samples}"
        )
    num_damaged = 0
    for sample_id in sample_ids:
        what = _problem_of_sample(index, content, sample_id)
        if what is not None:
            num_damaged += 1
            name = repr(index.key(sample_id)) if index.has_keys else f"number {sample_id}"
            yield Problem(f"{path}: sample {name}", what)
    if is_changed and not num_damaged:
        yield Problem(
            path,
            "the checksum differs from the index though every sample is whole: tar headers or "
            "padding were changed, which other readers may trip over",
        )


def _problem_of_sample(index: SampleIndex, content: memoryview, sample_id: int) -> str | None:
    record = index.samples[sample_id]
    payloads: dict[str, bytes] = {}
    crc32 = 0
    for column in index.meta.columns:
        start, size = int(record[offset_field(column)]), int(record[size_field(column)])
        payloads[column] = bytes(content[start : start + size])
        if len(payloads[column]) < size:
            return f"cut short: column .{column} ends {size - len(payloads[column])} bytes early"
        crc32 = zlib.crc32(payloads[column], crc32)
    if crc32 != record["crc32"]:
        return "damaged: the checksum differs from the index"
    try:
        sample = index.decoder.decode(payloads)
    except ValueError as error:
        return f"cannot be decoded: {error}"
    if sample.label != record["label"]:
        return f"is of class {sample.label}, but the index says {record['label']}"
    return None

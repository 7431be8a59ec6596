"""Writes one shard, or finds that it is written already."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydantic
import webdataset

from data_pipelines.decoding import SampleDecoder
from data_pipelines.durable_files import flush, partial_name, replace_file, sha256_of_file
from data_pipelines.errors import UserError
from data_pipelines.preparation.recipe import EncodedSample, SplitSource


class ShardRecord(pydantic.BaseModel):
    """What was written into a shard."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    num_samples: int
    sha256: str


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        source: The split it belongs to.
        number: Which shard of the split.
        path: Where it goes.
        record_path: Where its `ShardRecord` goes.
    """

    source: SplitSource
    number: int
    path: Path
    record_path: Path


def write_shard(task: ShardTask) -> ShardRecord:
    """Writes the shard of a task, byte for byte the same for the same samples.

    A shard that is there and has the recorded checksum is left as it is.

    Raises:
        UserError: A sample cannot be read or decoded; the message says where it comes from.
    """
    finished = _finished(task)
    if finished is not None:
        return finished
    partial = partial_name(task.path)
    places = task.source.places(task.number)
    try:
        with partial.open("xb") as file:
            hashed = _HashedFile(file)
            _write_samples(task.source.samples.read(places), hashed)
        flush(partial)
        partial.rename(task.path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(task.path.parent)
    record = ShardRecord(
        name=task.path.name, num_samples=len(places), sha256=hashed.digest.hexdigest()
    )
    replace_file(task.record_path, record.model_dump_json().encode("utf-8"))
    return record


def _finished(task: ShardTask) -> ShardRecord | None:
    if not task.record_path.exists() or not task.path.exists():
        return None
    record = ShardRecord.model_validate_json(task.record_path.read_bytes())
    return record if sha256_of_file(task.path) == record.sha256 else None


def _write_samples(samples: Iterator[EncodedSample], file: "_HashedFile") -> None:
    with webdataset.TarWriter(
        file,
        encoder=False,
        # Whatever would differ from one run or user to the next.
        mtime=0,
        user="data",
        group="data",
        mode=0o444,
    ) as writer:
        for sample in samples:
            _check(sample)
            writer.write({"__key__": sample.key, **sample.columns})


def _check(sample: EncodedSample) -> None:
    """Decodes a sample once: what cannot be decoded must not be found while a model trains."""
    try:
        SampleDecoder.for_columns(list(sample.columns)).decode(sample.columns)
    except ValueError as error:
        raise UserError(f"{sample.origin}: damaged or not whole: {error}") from error


class _HashedFile:
    """A file that keeps the checksum of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)

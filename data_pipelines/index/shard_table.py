"""What one shard holds, as the piece of the index that is about it."""

import io
import shutil
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from data_pipelines.durable_files import replace_file, sha256_of_file
from data_pipelines.errors import UserError, a_few
from data_pipelines.index.format import ShardMeta, sample_dtype
from data_pipelines.index.limits import MOST_CLASSES
from data_pipelines.index.scan import ScannedSample, about_dots, scan_shard
from data_pipelines.sources import open_source


class ShardFindings(pydantic.BaseModel):
    """What was found in a shard, apart from the table of its samples.

    Attributes:
        shard: Its entry in the index.
        modified: When the file was last changed, in nanoseconds.
        columns: Extensions of the files of its samples, sorted.
        ignored_columns: Those that were not to be read.
        shape: Of the array of its first sample.
        has_one_shape: Whether all others have the same; for tokens, the same number of rows.
        first_key: Name of its first sample, for messages.
        last_class: The largest class number.
        last_class_key: Name of a sample that has it.
        location: See `ScanTask`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    shard: ShardMeta
    modified: int
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    shape: tuple[int, ...]
    has_one_shape: bool
    first_key: str
    last_class: int
    last_class_key: str
    location: str | None

    @property
    def has_tokens(self) -> bool:
        """Whether the samples are text; tokens are (rows, length), images have three dimensions."""
        return len(self.shape) == 2


@dataclass(frozen=True)
class ScanTask:
    """A shard to scan.

    Attributes:
        path: The shard; where it is fetched to, if it is remote.
        number: Its number in the split.
        work: Folder that keeps the findings until the index is written.
        ignored_columns: Extensions of files that are not read.
        location: The folder that it is fetched from; None for a local shard.
    """

    path: Path
    number: int
    work: Path
    ignored_columns: Set[str]
    location: str | None = None

    @property
    def where(self) -> str:
        """Where the shard is, for messages."""
        return str(self.path) if self.location is None else f"{self.location}/{self.path.name}"

    @property
    def samples_path(self) -> Path:
        """Where the table of the shard's samples goes."""
        return self.work / f"{self.number:06d}.npy"

    @property
    def keys_path(self) -> Path:
        """Where the names of its samples go."""
        return self.work / f"{self.number:06d}.keys"

    @property
    def findings_path(self) -> Path:
        """Where its `ShardFindings` go; written last."""
        return self.work / f"{self.number:06d}.json"


def scan_to_files(task: ScanTask) -> ShardFindings:
    """Scans a shard and keeps what it found, or takes what an earlier start has found.

    Raises:
        UserError: The shard is damaged, or its samples cannot be used together.
    """
    earlier = _earlier_findings(task)
    if earlier is not None:
        return earlier
    if task.location is None:
        return _scanned(task)
    # As a whole: all of it is read twice, for the samples and for its checksum.
    source = open_source(task.location)
    # What a killed start has left there, or a link that somebody has put there.
    shutil.rmtree(task.path.parent, ignore_errors=True)
    task.path.parent.mkdir()
    try:
        with task.path.open("wb") as file:
            file.writelines(source.pieces(task.path.name, num_bytes=None))
        return _scanned(task)
    except UserError as error:
        raise UserError(str(error).replace(str(task.path), task.where)) from error
    finally:
        source.close()
        shutil.rmtree(task.path.parent)


def _scanned(task: ScanTask) -> ShardFindings:
    before = task.path.stat()
    samples = _Samples(task)
    for sample in scan_shard(task.path, ignored_columns=task.ignored_columns):
        samples.add(sample)
    findings = samples.findings(modified=before.st_mtime_ns, size=before.st_size)
    after = task.path.stat()
    if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
        raise UserError(f"{task.path}: was changed while it was read; wait until it is whole")
    # Through memory: where a disk is full, NumPy's own writing does not say so.
    stream = io.BytesIO()
    np.save(stream, samples.table(), allow_pickle=False)
    task.samples_path.write_bytes(stream.getvalue())
    task.keys_path.write_text("".join(f"{key}\n" for key in samples.keys), encoding="utf-8")
    replace_file(task.findings_path, findings.model_dump_json().encode("utf-8"))
    return findings


def _earlier_findings(task: ScanTask) -> ShardFindings | None:
    if not task.findings_path.exists():
        return None
    try:
        findings = ShardFindings.model_validate_json(task.findings_path.read_bytes())
    except pydantic.ValidationError:  # of another version, or not ours
        return None
    is_same = (
        findings.shard.name == task.path.name
        and findings.location == task.location
        and (task.location is not None or _is_unchanged(task.path, findings))
        and findings.ignored_columns == tuple(sorted(task.ignored_columns))
    )
    return findings if is_same else None


def _is_unchanged(path: Path, findings: ShardFindings) -> bool:
    status = path.stat()
    return (findings.shard.bytes, findings.modified) == (status.st_size, status.st_mtime_ns)


class _Samples:
    """Gathers the samples of one shard."""

    def __init__(self, task: ScanTask) -> None:
        self._task = task
        self._rows: list[tuple[int, ...]] = []
        self._first: ScannedSample | None = None
        self._last_class = (-1, "")
        self._has_one_shape = True
        self.keys: list[str] = []

    def add(self, sample: ScannedSample) -> None:
        first = self._first or sample
        self._first = first
        if list(sample.extents) != list(first.extents):
            raise UserError(
                f"{self._task.where}: sample {sample.key!r} has the columns "
                f"{a_few(sample.extents)}, the ones before it {a_few(first.extents)}"
                f"{about_dots(sample.key, sample.extents)}"
            )
        shape, first_shape = sample.shape, first.shape
        has_tokens = len(shape) == 2
        if has_tokens:  # their length may differ
            shape, first_shape = shape[:1], first_shape[:1]
        self._has_one_shape &= shape == first_shape
        if sample.label >= MOST_CLASSES:
            raise UserError(
                f"{self._task.where}: sample {sample.key!r} is of class {sample.label}, but class "
                f"numbers are below {MOST_CLASSES}"
            )
        self._last_class = max(self._last_class, (sample.label, sample.key))
        extents = (value for extent in sample.extents.values() for value in extent)
        length = sample.shape[1:] if has_tokens else ()
        self._rows.append((self._task.number, *extents, sample.crc32, sample.label, *length))
        self.keys.append(sample.key)

    def table(self) -> NDArray[Any]:
        assert self._first is not None
        dtype = sample_dtype(list(self._first.extents), has_tokens=len(self._first.shape) == 2)
        return np.array(self._rows, dtype=dtype)

    def findings(self, *, modified: int, size: int) -> ShardFindings:
        path = self._task.path
        if self._first is None:
            raise UserError(f"{path}: holds no samples")
        if len(self._first.shape) == 2 and not self._has_one_shape:
            raise UserError(f"{path}: its samples differ in the number of rows of their tokens")
        return ShardFindings(
            shard=ShardMeta(
                name=path.name,
                bytes=size,
                num_samples=len(self._rows),
                # Right after the scan, while the file is still in the machine's memory.
                sha256=sha256_of_file(path),
            ),
            modified=modified,
            columns=tuple(self._first.extents),
            ignored_columns=tuple(sorted(self._task.ignored_columns)),
            shape=self._first.shape,
            has_one_shape=self._has_one_shape,
            first_key=self._first.key,
            last_class=self._last_class[0],
            last_class_key=self._last_class[1],
            location=self._task.location,
        )

"""One pass over a finished shard: what samples it holds and whether it is whole."""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from data_pipelines.decoding import Sample, SampleDecoder
from data_pipelines.durable_files import pieces_of_file
from data_pipelines.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
# The members WebDataset takes for metadata about the shard and not for samples.
_SHARD_METADATA = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class ScannedSample:
    """A sample found in a shard.

    Attributes:
        extents: (offset, size) of each column's payload in the shard, in bytes, by sorted column.
        crc32: Checksum over the payloads in that order.
    """

    key: str
    extents: dict[str, tuple[int, int]]
    crc32: int
    image_shape: tuple[int, ...]
    label: int


def scan_shard(path: Path) -> Iterator[ScannedSample]:
    """Yields the samples of a shard in the order they are stored, and decodes each once.

    Members are grouped as WebDataset groups them: by name up to the first dot, as long as they
    follow each other; what it ignores (folders, names without an extension, `__…__`) is no sample.

    Raises:
        UserError: The shard is no tar, is damaged or cut short, or a sample cannot be decoded.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            yield from _samples(tar, path)
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole, uncompressed tar: {error}") from error


def _samples(tar: tarfile.TarFile, path: Path) -> Iterator[ScannedSample]:
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    end = 0
    for member in tar:
        end = member.offset_data
        if not member.isreg():
            continue
        if member.issparse():
            raise UserError(f"{path}: {member.name}: sparse members cannot be read by their offset")
        end += -(-member.size // _BLOCK) * _BLOCK
        prefix, column = base_plus_ext(member.name)
        if prefix is None or _SHARD_METADATA.match(member.name):
            continue
        if prefix != key and members:
            yield _scanned(tar, path, key, members)
            members = {}
        key, column = prefix, column.lower()
        if column in members:
            raise UserError(f"{path}: sample {key!r} has two files .{column}")
        members[column] = member
    if members:
        yield _scanned(tar, path, key, members)
    _check_end(path, end)


def _scanned(
    tar: tarfile.TarFile, path: Path, key: str, members: dict[str, tarfile.TarInfo]
) -> ScannedSample:
    _check_key(path, key)
    payloads: dict[str, bytes] = {}
    crc32 = 0
    for column in sorted(members):
        file = tar.extractfile(members[column])
        assert file is not None, "a regular member has content"
        payloads[column] = file.read()
        crc32 = zlib.crc32(payloads[column], crc32)
    sample = _decoded(path, key, payloads)
    return ScannedSample(
        key=key,
        extents={
            column: (members[column].offset_data, len(payloads[column])) for column in payloads
        },
        crc32=crc32,
        image_shape=sample.image.shape,
        label=sample.label,
    )


def _decoded(path: Path, key: str, payloads: dict[str, bytes]) -> Sample:
    try:
        return SampleDecoder.for_columns(list(payloads)).decode(payloads)
    except ValueError as error:
        raise UserError(f"{path}: sample {key!r}: {error}") from error


def _check_key(path: Path, key: str) -> None:
    try:
        key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: sample {key!r}: the name is not UTF-8") from error
    if "\n" in key:
        raise UserError(f"{path}: sample {key!r}: a name cannot contain a line break")


def _check_end(path: Path, end: int) -> None:
    """Refuses a shard whose walk ended before the shard did.

    `tarfile` takes a damaged header in the middle, or a file cut between two members, for the end
    of the archive and says nothing. A whole archive ends with two blocks of zeros and has nothing
    else after its last member.
    """
    num_zeros = 0
    for piece in pieces_of_file(path, start=end):
        if piece.strip(b"\0"):
            raise UserError(f"{path}: damaged: no valid tar header at byte {end}, yet data follows")
        num_zeros += len(piece)
    if num_zeros < 2 * _BLOCK:
        raise UserError(
            f"{path}: cut short: the mark for the end of a tar is missing at byte {end}"
        )

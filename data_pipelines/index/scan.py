"""One pass over a finished shard: what samples it holds and whether it is whole."""

import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

from data_pipelines.decoding import SampleDecoder, SampleHeader, decoder_for
from data_pipelines.decoding.columns import TOKENS_COLUMN
from data_pipelines.durable_files import pieces_of_file
from data_pipelines.errors import UserError
from data_pipelines.index.limits import MOST_SAMPLE_BYTES
from data_pipelines.sources.file_names import is_no_member
from data_pipelines.sources.positioned_reads import read_at
from data_pipelines.tar_headers import tar_headers

_BLOCK = tarfile.BLOCKSIZE
# The members WebDataset takes for metadata about the shard and not for samples.
_SHARD_METADATA = re.compile(r"__[^/]*__($|/)")
# How files begin that people compress tars to.
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class ScannedSample:
    """A sample found in a shard.

    Attributes:
        extents: (offset, size) of each column's payload in the shard, in bytes, by sorted column.
        crc32: Checksum over the payloads in that order.
        shape: Of its array: (height, width, channels) of an image, (rows, length) of tokens.
    """

    key: str
    extents: dict[str, tuple[int, int]]
    crc32: int
    shape: tuple[int, ...]
    label: int


def scan_shard(path: Path, *, ignored_columns: Set[str] = frozenset()) -> Iterator[ScannedSample]:
    """Yields the samples of a shard in the order they are stored, and looks at each one's header.

    Members are grouped as WebDataset groups them: by name up to the first dot, as long as they
    follow each other; what it ignores (folders, names without an extension, `__…__`) is no sample,
    and neither are hidden files and those of a Mac (`._NAME`, `__MACOSX/…`).

    Args:
        path: The shard.
        ignored_columns: Extensions of files that are not read.

    Raises:
        UserError: The shard is no tar, is compressed, damaged or cut short, or a sample cannot be
            decoded or could not be read by its offset.
    """
    _check_not_compressed(path)
    try:
        with path.open("rb") as file:
            yield from _samples(file, path, ignored_columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _check_not_compressed(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for magic, name in _COMPRESSIONS.items():
        if begin.startswith(magic):
            raise UserError(
                f"{path}: compressed ({name}): samples are read by their offset, which there is "
                "none of in a compressed tar; unpack it to a plain .tar (images stay compressed)"
            )


def _samples(file: BinaryIO, path: Path, ignored_columns: Set[str]) -> Iterator[ScannedSample]:
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    end = 0
    for member in tar_headers(file, name=str(path)):
        end = member.offset_data
        _check_name(path, member)
        if not member.isreg():
            _check_not_a_link(path, member)
            continue
        if member.issparse():
            raise UserError(f"{path}: {member.name}: sparse members cannot be read by their offset")
        end += -(-member.size // _BLOCK) * _BLOCK
        prefix, column = base_plus_ext(member.name)
        if prefix is None or _SHARD_METADATA.match(member.name) or is_no_member(member.name):
            continue
        column = column.lower()
        if key is not None and prefix != key:
            yield _scanned(file, path, key, members)
            members = {}
        key = prefix
        if column in ignored_columns:
            continue
        if column in members:
            raise UserError(f"{path}: sample {key!r} has two files .{column}")
        members[column] = member
    if key is not None:
        yield _scanned(file, path, key, members)
    _check_end(path, end)


def _check_name(path: Path, member: tarfile.TarInfo) -> None:
    """Refuses what would be written elsewhere by people who unpack the shard or use its keys."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f"{path}: {member.name!r}: a name that leads out of the folder a tar is unpacked in; "
            "samples have relative names without `..`"
        )


def _check_not_a_link(path: Path, member: tarfile.TarInfo) -> None:
    if member.ischr() or member.isblk() or member.isfifo():
        raise UserError(f"{path}: {member.name}: a device or a pipe, which no data set has")
    if member.issym() or member.islnk():
        raise UserError(
            f"{path}: {member.name}: a link to {member.linkname!r}, which readers of shards leave "
            "out; store the file itself"
        )


def _scanned(
    file: BinaryIO, path: Path, key: str, members: dict[str, tarfile.TarInfo]
) -> ScannedSample:
    _check_key(path, key)
    decoder = _decoder(path, key, members)
    _check_size(file, path, key, members)
    payloads: dict[str, bytes] = {}
    crc32 = 0
    for column in sorted(members):
        start = members[column].offset_data
        stop = start + members[column].size
        # By position: the walk over the headers goes on where it was.
        payloads[column] = read_at(file.fileno(), start=start, stop=stop)
        crc32 = zlib.crc32(payloads[column], crc32)
    shape, label = _described(path, key, decoder, payloads)
    return ScannedSample(
        key=key,
        extents={
            column: (members[column].offset_data, len(payloads[column])) for column in payloads
        },
        crc32=crc32,
        shape=shape,
        label=label,
    )


def _decoder(path: Path, key: str, members: dict[str, tarfile.TarInfo]) -> SampleDecoder:
    try:
        return decoder_for(tuple(sorted(members)))
    except UserError as error:
        raise UserError(f"{path}: sample {key!r}: {error}{about_dots(key, members)}") from error


def about_dots(key: str, columns: Iterable[str]) -> str:
    """For messages about unexpected columns: what they may come from, if there is a dot in one."""
    dotted = next((each for each in columns if "." in each and each != TOKENS_COLUMN), None)
    if dotted is None:
        return ""
    return (
        f"; a sample's name ends at its first dot, so `{key}.{dotted}` is the file .{dotted} of "
        f"the sample {key!r}: write other dots in names as `_`"
    )


def _described(
    path: Path, key: str, decoder: SampleDecoder, payloads: dict[str, bytes]
) -> SampleHeader:
    try:
        header = decoder.probe(payloads)
        if any(column.endswith("npy") for column in payloads):
            # Costs nothing, and finds arrays that are cut short behind their header.
            decoder.decode(payloads)
        return header
    except ValueError as error:
        raise UserError(f"{path}: sample {key!r}: {error}") from error


def _check_size(file: BinaryIO, path: Path, key: str, members: dict[str, tarfile.TarInfo]) -> None:
    """Refuses a sample that ends behind the shard or is too large, before memory is taken."""
    if not members:
        return
    start = min(member.offset_data for member in members.values())
    stop = max(member.offset_data + member.size for member in members.values())
    if stop > os.fstat(file.fileno()).st_size:
        raise UserError(f"{path}: not a whole, uncompressed tar: sample {key!r} is cut short")
    if stop - start > MOST_SAMPLE_BYTES:
        raise UserError(
            f"{path}: sample {key!r}: {stop - start} bytes are more than a sample can have, "
            f"{MOST_SAMPLE_BYTES}"
        )


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

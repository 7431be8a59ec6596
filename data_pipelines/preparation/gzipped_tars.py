"""Files out of a gzipped tar, into memory: nothing is unpacked, so no name or link can do harm."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from data_pipelines.errors import UserError
from data_pipelines.tar_headers import tar_headers

# The published archives unpack to 200 MB. Zeros of so many bytes are gone through in seconds.
_MOST_UNPACKED_BYTES = 4 << 30
_PIECE_BYTES = 1 << 20


def gzipped_files(
    archive: Path | bytes, *, name: str, is_wanted: Callable[[str], bool], most_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the wanted members, and reads to the checksum at the very end.

    Args:
        archive: The archive or its content.
        name: What messages call it.
        is_wanted: By the name of the member.
        most_bytes: What a wanted member can have.

    Raises:
        UserError: It is damaged, cut short, or unpacks to more than such an archive has.
    """
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive
    try:
        with gzip.open(source) as stream:
            yield from _files(cast(BinaryIO, stream), name, is_wanted, most_bytes)
            while stream.read(_PIECE_BYTES):
                _check_unpacked(stream.tell(), name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name}: damaged or cut short: {error}") from error


def _files(
    stream: BinaryIO, name: str, is_wanted: Callable[[str], bool], most_bytes: int
) -> Iterator[tuple[str, bytes]]:
    for member in tar_headers(stream, name=name):
        # Before the next header is looked for behind it.
        _check_unpacked(member.offset_data + member.size, name)
        if not is_wanted(member.name):
            continue
        if not member.isreg() or member.issparse() or member.size > most_bytes:
            raise UserError(f"{name}: {member.name}: not a file of the expected size")
        stream.seek(member.offset_data)
        content = stream.read(member.size)
        if len(content) < member.size:
            raise UserError(f"{name}: damaged or cut short: {member.name} ends early")
        yield member.name, content


def _check_unpacked(num_bytes: int, name: str) -> None:
    if num_bytes > _MOST_UNPACKED_BYTES:
        raise UserError(
            f"{name}: unpacks to more than {_MOST_UNPACKED_BYTES} bytes, which no such archive does"
        )

"""The headers of a tar that may be damaged or hostile, at the cost that headers have."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from data_pipelines.errors import UserError

# A long name has some kilobytes; extended attributes have at most 64 KiB.
_MOST_HEADER_BYTES = 1 << 17
# What a tar says about all of its members; nobody says more than a handful of things.
_MOST_GLOBAL_SETTINGS = 1000


def tar_headers(file: BinaryIO, *, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the members of an uncompressed tar that begins where `file` is; reads no content.

    Nothing is ever unpacked, so names that lead elsewhere and links do nothing by themselves. Who
    wants the content of a member reads it from `file` at `offset_data`, also in between.

    Args:
        file: Can be read and sought.
        name: What messages call it.

    Raises:
        UserError: A header is damaged, or asks for more memory than headers need.
    """
    try:
        with tarfile.TarFile(fileobj=cast(BinaryIO, _Headers(file))) as tar:
            while (member := tar.next()) is not None:
                # The list of members, which `tarfile` keeps, would grow with the tar.
                tar.members = []  # type: ignore[attr-defined]
                if member.size < 0:  # after which `tarfile` would go round in circles
                    raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
                if len(tar.pax_headers) > _MOST_GLOBAL_SETTINGS:
                    raise tarfile.ReadError(f"{len(tar.pax_headers)} settings for all its members")
                yield member
    except tarfile.TarError as error:
        raise UserError(f"{name}: not a whole, uncompressed tar: {error}") from error
    except RecursionError as error:
        raise UserError(f"{name}: damaged: hundreds of extended headers for one member") from error
    # What `tarfile` lets through when numbers in extended headers are none.
    except (ValueError, OverflowError, IndexError, KeyError) as error:
        raise UserError(f"{name}: damaged: no valid tar header: {error}") from error


class _Headers:
    """A file whose reads are as small as headers: `tarfile` believes what they say of their size.

    The size of an extended header is a number in the header before, and in a compressed tar
    gigabytes of it take no room at all.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        return self._file.read(size)

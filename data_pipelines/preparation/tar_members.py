"""Where the members of an uncompressed tar lie, and whether it is whole."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.sources.file_names import is_no_member
from data_pipelines.tar_headers import tar_headers

_BLOCK = tarfile.BLOCKSIZE
_PIECE_BYTES = 1 << 20


def walk_tar(path: Path, *, start: int = 0, stop: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of a tar, or of a tar that lies inside it; reads headers only.

    Hidden files, such as the `._NAME` of a Mac, are left out.

    Args:
        path: The outer tar.
        start: Where in it the tar to walk begins.
        stop: Where it ends; None for the end of the file.

    Yields:
        The members; `offset_data` is where in `path` their content begins.

    Raises:
        UserError: It is no uncompressed tar, is damaged or cut short.
    """
    end = start
    stop = path.stat().st_size if stop is None else stop
    with path.open("rb") as file:
        file.seek(start)
        for member in tar_headers(file, name=str(path)):
            end = member.offset_data
            if not member.isreg():
                continue
            end += -(-member.size // _BLOCK) * _BLOCK
            if end > stop:
                break
            if not is_no_member(member.name):
                yield member
        if end + 2 * _BLOCK > stop:
            raise UserError(f"{path}: cut short: the mark for the end of a tar is missing at {end}")
        # `tarfile` takes a damaged header for the end of the archive and says nothing.
        file.seek(end)
        while (position := file.tell()) < stop:
            if file.read(min(_PIECE_BYTES, stop - position)).strip(b"\0"):
                raise UserError(f"{path}: damaged: no valid header at byte {end}, yet data follows")

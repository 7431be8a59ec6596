"""Files and folders that are either there as a whole, and on disk, or not there at all."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError

_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def new_directory(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Makes the folder `target` in one step out of what the block writes.

    Yields a temporary folder beside `target`. When the block ends it is flushed to disk and renamed
    to `target`; when the block raises it is removed. A killed process leaves only the temporary
    folder, whose hidden name `.NAME.partial-…` nothing takes for finished data.

    Args:
        target: The folder to make; its parents are made too.
        replaces: Whether a folder that is there already is replaced, when the new one is on disk.

    Raises:
        UserError: `target` is there already and holds something, and is not to be replaced.
    """
    partial = partial_name(target)
    # Not `tempfile.mkdtemp`: its folders stay closed to everybody else on a shared file system.
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush_tree(partial)
        old = None
        if replaces and target.is_dir():
            old = target.rename(target.with_name(f"{partial.name}-replaced"))
        rename_to_new(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(target.parent)
    if old is not None:
        shutil.rmtree(old)


def remove_partials(parent: Path) -> None:
    """Removes what killed processes left of new folders and files; nobody else may write here."""
    for path in parent.glob(".*.partial-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step: a reader, or a crash, sees all of the old one or of the new."""
    partial = partial_name(path)
    try:
        partial.write_bytes(content)
        flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in pieces_of_file(path):
        digest.update(piece)
    return digest.hexdigest()


def pieces_of_file(path: Path, *, start: int = 0) -> Iterator[bytes]:
    """Yields a file's bytes from `start` on, a bounded piece at a time."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE_BYTES):
            yield piece


def partial_name(path: Path) -> Path:
    """Returns a hidden name beside `path` for what is not finished yet."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def rename_to_new(
    partial: Path, target: Path, *, advice: str = "remove it or choose another folder"
) -> None:
    """Renames a folder to one that is not there, or is empty.

    Args:
        partial: The folder.
        target: Its new name.
        advice: What the user can do when something is there.

    Raises:
        UserError: Something is there; it is left as it is.
    """
    try:
        # POSIX: replaces an empty folder, refuses one that holds something.
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(
            f"{target}: there is something here already, and it is never overwritten; {advice}"
        ) from error


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    for folder, _, file_names in os.walk(directory):
        for name in file_names:
            flush(Path(folder, name))
        flush(Path(folder))

"""Whole shards kept on a local disk, within a limit, for all processes of a machine.

In the folder, a shard is named by the SHA-256 of its content, so the same shard is kept once
whatever it is called, and nothing that an index says becomes part of a path. A shard is written
under another name, compared with size and SHA-256, and renamed: a complete name is a complete
shard, and a killed process leaves only what the next one recognises as nobody's. Locks are files
locked with `flock`, which the kernel releases when a process ends, however it ends.
"""

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from data_pipelines.errors import UserError
from data_pipelines.sources.file_names import checked_sha256
from data_pipelines.sources.interface import StoredFile

_SHARD_SUFFIX = ".tar"
_PARTIAL_SUFFIX = ".partial"
_CACHE_LOCK = "cache"
# Others wait for a process that fetches a shard, as long as it has not been silent for this long.
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.01
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_RESERVE = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}

_logger = logging.getLogger("data_pipelines")


class WrongContentError(UserError):
    """What was fetched is not the shard that was indexed."""


class ShardCache:
    """Keeps the most recently used shards, at most `max_bytes` in all.

    A shard that is thrown away while a process reads it stays readable for that process: it holds
    it open, and the disk space is free when it closes it.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        """Makes the folder.

        Args:
            directory: On a file system with `flock`, so best a local one.
            max_bytes: What all shards in it may take, those being fetched included. Processes that
                share a folder should be given the same limit; each keeps to its own.

        Raises:
            UserError: The folder cannot be made or written to.
        """
        self._directory = directory
        self._locks = directory / "locks"
        self._max_bytes = max_bytes
        self._warned: set[str] = set()
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache_dir: {directory}: cannot be made: {error}") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise UserError(f"cache_dir: {directory}: cannot be written to")

    def open(self, file: StoredFile, fetch: Callable[[], Iterator[bytes]]) -> int | None:
        """Opens a shard, after fetching it if it is not here.

        One process fetches; others that want the same shard wait for it.

        Args:
            file: The shard.
            fetch: Yields its bytes.

        Returns:
            A file descriptor for reading, which the caller closes; None when the shard cannot be
            kept here: it is larger than the limit, the disk is full, or the limit is taken up by
            shards that others are fetching. The first time for each reason, a warning says so.

        Raises:
            UserError: See `fetch`, or the folder holds what does not belong there.
            WrongContentError: What was fetched is not the shard.
        """
        try:
            found = self._open_kept(file)
            return self._open_fetched(file, fetch) if found is None else found
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise UserError(f"cache_dir: {self._directory}: {error}") from error
            self._warn("full", str(error.strerror))
            return None

    def remove(self, file: StoredFile) -> None:
        """Throws a shard away."""
        self._path(file).unlink(missing_ok=True)

    def _path(self, file: StoredFile) -> Path:
        return self._directory / f"{_digest(file)}{_SHARD_SUFFIX}"

    def _open_kept(self, file: StoredFile) -> int | None:
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            what = "a symbolic link, which is never made here" if path.is_symlink() else str(error)
            raise UserError(f"{path}: {what}; remove it") from error
        if os.fstat(descriptor).st_size != file.num_bytes:
            # It had the right size when it was renamed: somebody or a broken disk changed it.
            os.close(descriptor)
            self.remove(file)
            return None
        # The time of its last use; only the owner may set it in a folder that users share.
        with contextlib.suppress(PermissionError):
            os.utime(descriptor)
        return descriptor

    def _open_fetched(self, file: StoredFile, fetch: Callable[[], Iterator[bytes]]) -> int | None:
        if file.num_bytes > self._max_bytes:
            self._warn(
                "large",
                f"{file.name} has {file.num_bytes} bytes, more than cache_limit {self._max_bytes}",
            )
            return None
        while True:
            with self._locked(_digest(file)) as is_locked:
                if is_locked:
                    # Another process may have fetched it while this one waited.
                    found = self._open_kept(file)
                    return self._fetch(file, fetch) if found is None else found
            if not self._is_growing(file):
                self._warn("stuck", "another process that fetches a shard does not get on")
                return None

    def _is_growing(self, file: StoredFile) -> bool:
        try:
            written = self._path(file).with_suffix(_PARTIAL_SUFFIX).stat().st_mtime
        except FileNotFoundError:  # just done, or about to begin
            return True
        return time.time() - written < _PATIENCE_SECONDS

    def _fetch(self, file: StoredFile, fetch: Callable[[], Iterator[bytes]]) -> int | None:
        partial = self._path(file).with_suffix(_PARTIAL_SUFFIX)
        descriptor = self._reserve(file, partial)
        if descriptor is None:
            return None
        try:
            _write_checked(descriptor, fetch(), file=file)
            os.fsync(descriptor)
            # Under the lock, so that who adds up the sizes meanwhile misses it under neither name.
            # Waiting in vain for that lock makes the sum wrong, which is better than no shard.
            with self._locked(_CACHE_LOCK):
                partial.rename(self._path(file))
        except BaseException:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        return descriptor

    def _reserve(self, file: StoredFile, partial: Path) -> int | None:
        """Makes room for a shard and takes it, so that no other process counts on it."""
        with self._locked(_CACHE_LOCK) as is_locked:
            if not is_locked:
                self._warn("stuck", "another process that makes room does not get on")
                return None
            # This process holds the shard's lock, so what is there was left by a killed one.
            partial.unlink(missing_ok=True)
            if not self._make_room(file.num_bytes):
                self._warn("busy", "cache_limit is taken up by shards that are being fetched")
                return None
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o666)
            try:
                _allocate(descriptor, file.num_bytes)
            except BaseException:
                os.close(descriptor)
                partial.unlink()
                raise
            return descriptor

    def _make_room(self, num_bytes: int) -> bool:
        """Throws shards away, those first that were not used for longest."""
        kept = self._kept()
        for each in [each for each in kept if each.path.suffix == _PARTIAL_SUFFIX]:
            with self._locked(each.path.stem, patience_seconds=0) as is_nobodys:
                if is_nobodys:
                    each.path.unlink(missing_ok=True)
                    kept.remove(each)
        total = num_bytes + sum(each.num_bytes for each in kept)
        for each in sorted(kept):
            if total <= self._max_bytes:
                break
            if each.path.suffix == _SHARD_SUFFIX:
                each.path.unlink(missing_ok=True)
                total -= each.num_bytes
        return total <= self._max_bytes

    def _kept(self) -> list["_Kept"]:
        kept = []
        for path in self._directory.iterdir():
            if path.suffix in (_SHARD_SUFFIX, _PARTIAL_SUFFIX):
                with contextlib.suppress(FileNotFoundError):  # renamed or thrown away meanwhile
                    status = path.lstat()
                    kept.append(_Kept(status.st_mtime_ns, status.st_size, path))
        return kept

    @contextlib.contextmanager
    def _locked(self, name: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[bool]:
        lock = filelock.FileLock(self._locks / f"{name}.lock")
        try:
            lock.acquire(timeout=patience_seconds, poll_interval=_POLL_SECONDS)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _warn(self, reason: str, what: str) -> None:
        """Warns once for each kind of reason: it is the same for many shards."""
        if reason not in self._warned:
            self._warned.add(reason)
            _logger.warning(
                "cache_dir %s: %s; such shards are read from where they are", self._directory, what
            )


class _Kept(NamedTuple):
    """A file in the cache; the one not used for longest sorts first."""

    used: int
    num_bytes: int
    path: Path


def _digest(file: StoredFile) -> str:
    return checked_sha256(file.sha256, found_in=f"index: {file.name}")


def _allocate(descriptor: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.ftruncate(descriptor, num_bytes)


def _write_checked(descriptor: int, pieces: Iterator[bytes], *, file: StoredFile) -> None:
    """Writes a shard and compares it with what the index says, in one pass."""
    digest = hashlib.sha256()
    num_bytes = 0
    for piece in pieces:
        num_bytes += len(piece)
        if num_bytes > file.num_bytes:
            break
        digest.update(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    if num_bytes > file.num_bytes:
        what = f"it has more than {file.num_bytes} bytes"
    elif num_bytes < file.num_bytes:
        what = f"it has {num_bytes} bytes instead of {file.num_bytes}"
    elif digest.hexdigest() != file.sha256:
        what = "its SHA-256 is another"
    else:
        return
    raise WrongContentError(f"{file.name}: what was fetched is not what was indexed: {what}")

"""Shards in an object store, or any other place that fsspec knows (s3, gs, abfs, hf, sftp, …)."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fsspec

from data_pipelines.errors import UserError
from data_pipelines.sources.interface import ByteRange, StoredFile
from data_pipelines.sources.redaction import without_secrets

# What passes in the time a request takes is cheaper to read than to skip.
_MAX_GAP_BYTES = 1 << 17
_MAX_BYTES_AT_ONCE = 32 << 20
_MAX_RANGES_AT_ONCE = 64
_PIECE_BYTES = 1 << 20
# The extras of this package that bring what a protocol needs.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}


class FsspecFolder:
    """Reads byte ranges through `fsspec`, whose file systems ask for many at a time where they can.

    Retries, credentials and time limits are those of the file system; `storage_options` sets them.
    """

    max_gap_bytes = _MAX_GAP_BYTES

    def __init__(self, location: str, *, storage_options: Mapping[str, Any]) -> None:
        """Connects to nothing yet.

        Args:
            location: URL of the folder; chained ones (`simplecache::s3://…`) are for fsspec.
            storage_options: What the file system is made with.
        """
        self._location = location.rstrip("/")
        self._storage_options = dict(storage_options)
        self._opened: _Opened | None = None

    def __reduce__(self) -> tuple[Callable[[str], "FsspecFolder"], tuple[str]]:
        made = functools.partial(FsspecFolder, storage_options=self._storage_options)
        return made, (self._location,)

    def where(self, name: str) -> str:
        """Returns the URL of a file without user, password and query."""
        return f"{without_secrets(self._location).rstrip('/')}/{name}"

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Yields the bytes of ranges; asks for up to 32 MiB of them at once.

        Raises:
            UserError: See `ShardSource.read_ranges`.
        """
        at_once: list[ByteRange] = []
        num_bytes = 0
        for wanted in ranges:
            size = wanted.stop - wanted.start
            if at_once and (
                num_bytes + size > _MAX_BYTES_AT_ONCE or len(at_once) == _MAX_RANGES_AT_ONCE
            ):
                yield from self._read(at_once)
                at_once, num_bytes = [], 0
            at_once.append(wanted)
            num_bytes += size
        if at_once:
            yield from self._read(at_once)

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields a whole file.

        Raises:
            UserError: See `ShardSource.pieces`.
        """
        opened = self._file_system()
        position = 0
        try:
            if num_bytes is not None:
                self._check_size(opened, name, num_bytes=num_bytes)
            with opened.file_system.open(opened.path(name), "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    position += len(piece)
                    yield piece
        except UserError:
            raise
        except Exception as error:
            raise self._failure(name, error) from error
        if num_bytes is not None and position != num_bytes:
            raise UserError(f"{self.where(name)}: ended after {position} of {num_bytes} bytes")

    def names(self, pattern: str) -> list[str]:
        """Returns the names of the files that a pattern with `*` fits, sorted.

        Raises:
            UserError: The place cannot be reached.
        """
        opened = self._file_system()
        try:
            found = opened.file_system.glob(opened.path(pattern))
        except Exception as error:
            raise self._failure(pattern, error) from error
        return sorted(path.rpartition("/")[2] for path in found)

    def report_damage(self, file: StoredFile) -> bool:
        """Says that another answer may be right: bytes are also damaged on their way."""
        return True

    def close(self) -> None:
        """Forgets the file system, which fsspec keeps connected for others that use it."""
        self._opened = None

    def _read(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        opened = self._file_system()
        for file in {wanted.file for wanted in ranges}:
            self._check_size(opened, file.name, num_bytes=file.num_bytes)
        try:
            contents = opened.file_system.cat_ranges(
                [opened.path(wanted.file.name) for wanted in ranges],
                [wanted.start for wanted in ranges],
                [wanted.stop for wanted in ranges],
                on_error="return",
            )
        except Exception as error:
            raise self._failure(ranges[0].file.name, error) from error
        for wanted, content in zip(ranges, contents, strict=True):
            name = wanted.file.name
            if isinstance(content, BaseException):
                raise self._failure(name, content) from content
            if len(content) != wanted.stop - wanted.start:
                raise UserError(
                    f"{self.where(name)}: cut short: ends at byte {wanted.start + len(content)}, "
                    f"but a sample reaches to byte {wanted.stop}"
                )
            yield bytes(content)

    def _check_size(self, opened: "_Opened", name: str, *, num_bytes: int) -> None:
        """Looks once in each process whether a file is there as it was indexed."""
        if name in opened.checked:
            return
        try:
            found = opened.file_system.size(opened.path(name))
        except Exception as error:
            raise self._failure(name, error) from error
        if found is not None and found != num_bytes:
            raise UserError(
                f"{self.where(name)}: {found} bytes, but {num_bytes} when it was indexed: changed "
                "or cut short; restore it, or index the shards that are there"
            )
        opened.checked.add(name)

    # File systems raise what the libraries below them raise: there is no common class.
    def _failure(self, name: str, error: BaseException) -> UserError:
        where = self.where(name)
        if isinstance(error, FileNotFoundError):
            return UserError(f"{where}: missing: no such object")
        reason = without_secrets(f"{type(error).__name__}: {error}", of=self._location)
        return UserError(f"{where}: cannot be read: {reason}")

    def _file_system(self) -> "_Opened":
        # After a fork the connections and the thread of an asynchronous one are the parent's.
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Opened(self._location, self._storage_options)
        return self._opened


class _Opened:
    """The file system of one process."""

    def __init__(self, location: str, storage_options: Mapping[str, Any]) -> None:
        self.process = os.getpid()
        self.checked: set[str] = set()
        protocol = location.partition("://")[0].rpartition("::")[2]
        try:
            self.file_system, self._folder = fsspec.url_to_fs(location, **storage_options)
        except ImportError as error:
            shown = without_secrets(location)
            extra = _EXTRAS.get(protocol)
            how = f"`pip install 'msam-scale[{extra}]'`: " if extra is not None else ""
            raise UserError(f"{shown}: needs another package: {how}{error}") from error
        # Some file systems connect at once.
        except Exception as error:
            reason = without_secrets(str(error), of=location)
            raise UserError(f"{without_secrets(location)}: cannot be opened: {reason}") from error

    def path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"

"""Shards on a web server."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from urllib.parse import quote, urlunsplit

import requests
from requests.adapters import HTTPAdapter

from data_pipelines.errors import UserError
from data_pipelines.sources.http_requests import Answer, no_ranges, request_range
from data_pipelines.sources.interface import ByteRange, StoredFile
from data_pipelines.sources.redaction import split_url, without_secrets
from data_pipelines.sources.retrying import Retries, TransientError

# What passes in the time a request takes is cheaper to read than to skip.
_MAX_GAP_BYTES = 1 << 17
_MAX_REDIRECTS = 5
# A connection that has brought this much of a whole file works: earlier failures are forgotten.
_STEADY_BYTES = 1 << 20


class HttpFolder:
    """Reads byte ranges over http(s), several at a time.

    Uses `requests`, so proxies and certificates from the environment and passwords from `.netrc`
    work as its documentation says. The query of the location, such as an access token, is sent with
    every request and left out of messages.
    """

    max_gap_bytes = _MAX_GAP_BYTES

    def __init__(
        self, location: str, *, num_retries: int, timeout_seconds: float, max_connections: int
    ) -> None:
        """Connects to nothing yet.

        Args:
            location: URL of the folder.
            num_retries: See `SourceOptions`.
            timeout_seconds: See `SourceOptions`.
            max_connections: See `SourceOptions`.

        Raises:
            UserError: The location has no host, or a fragment.
        """
        parts = split_url(location)
        if not parts.hostname or parts.fragment:
            raise UserError(
                f"{without_secrets(location)}: no URL of a folder; give it as "
                "https://HOST/FOLDER/SPLIT"
            )
        self._location = location
        self._parts = parts
        self._num_retries = num_retries
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._connections: _Connections | None = None

    def __reduce__(self) -> tuple[Callable[[str], "HttpFolder"], tuple[str]]:
        made = functools.partial(
            HttpFolder,
            num_retries=self._num_retries,
            timeout_seconds=self._timeout_seconds,
            max_connections=self._max_connections,
        )
        return made, (self._location,)

    def where(self, name: str) -> str:
        """Returns the URL of a file without user, password and query."""
        return without_secrets(urlunsplit(self._parts._replace(path=self._path(name))))

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        """Yields the bytes of ranges; asks for a few ahead.

        Raises:
            UserError: See `ShardSource.read_ranges`; failures that may pass are retried before.
        """
        if len(ranges) == 1 or self._max_connections == 1:
            yield from map(self._read, ranges)
            return
        waiting = iter(ranges)
        running: deque[Future[bytes]] = deque()
        executor = self._connected().executor
        try:
            while True:
                for wanted in islice(waiting, self._max_connections - len(running)):
                    running.append(executor.submit(self._read, wanted))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def pieces(self, name: str, *, num_bytes: int | None) -> Iterator[bytes]:
        """Yields a whole file; goes on where it was when the connection breaks.

        Raises:
            UserError: See `ShardSource.pieces`; failures that may pass are retried before.
        """
        retries = Retries(self._num_retries, where=self.where(name))
        position = steady_from = 0
        while True:
            try:
                with self._request(name, start=position, stop=None) as answer:
                    self._check_size(name, answer, num_bytes=num_bytes)
                    for piece in _from(answer, position):
                        position += len(piece)
                        if position - steady_from >= _STEADY_BYTES:
                            retries.succeeded()
                        yield piece
                if num_bytes is not None and position < num_bytes:
                    raise TransientError(f"ends after {position} of {num_bytes} bytes")
            except TransientError as error:
                retries.wait_after(error)
                steady_from = position
                continue
            return

    def report_damage(self, file: StoredFile) -> bool:
        """Says that another answer may be right: bytes are also damaged on their way."""
        return True

    def close(self) -> None:
        """Closes the connections of this process; reading opens them again."""
        if self._connections is not None and self._connections.process == os.getpid():
            self._connections.close()
        self._connections = None

    def _read(self, wanted: ByteRange) -> bytes:
        retries = Retries(self._num_retries, where=self.where(wanted.file.name))
        while True:
            try:
                return self._read_once(wanted)
            except TransientError as error:
                retries.wait_after(error)

    def _read_once(self, wanted: ByteRange) -> bytes:
        file, start, stop = wanted
        with self._request(file.name, start=start, stop=stop) as answer:
            self._check_size(file.name, answer, num_bytes=file.num_bytes)
            if answer.response.status_code == 200 and (start, stop) != (0, file.num_bytes):
                raise no_ranges(self.where(file.name))
            content = b"".join(answer.body())
        if len(content) != stop - start:
            raise TransientError(f"{len(content)} bytes came instead of {stop - start}")
        return content

    def _request(
        self, name: str, *, start: int, stop: int | None
    ) -> AbstractContextManager[Answer]:
        return request_range(
            self._connected().session,
            urlunsplit(self._parts._replace(path=self._path(name))),
            where=self.where(name),
            start=start,
            stop=stop,
            timeout_seconds=self._timeout_seconds,
        )

    def _check_size(self, name: str, answer: Answer, *, num_bytes: int | None) -> None:
        if None not in (num_bytes, answer.num_file_bytes) and answer.num_file_bytes != num_bytes:
            raise UserError(
                f"{self.where(name)}: {answer.num_file_bytes} bytes, but {num_bytes} when it was "
                "indexed: changed or cut short; restore it, or index the shards that are there"
            )

    def _path(self, name: str) -> str:
        return f"{self._parts.path.rstrip('/')}/{quote(name)}"

    def _connected(self) -> "_Connections":
        # After a fork the connections belong to the other process.
        if self._connections is None or self._connections.process != os.getpid():
            self._connections = _Connections(self._max_connections)
        return self._connections


class _Connections:
    """What one process has open."""

    def __init__(self, max_connections: int) -> None:
        self.process = os.getpid()
        self.session = requests.Session()
        self.session.max_redirects = _MAX_REDIRECTS
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=max_connections)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.executor = ThreadPoolExecutor(max_connections, thread_name_prefix="shard-ranges")

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)
        self.session.close()


def _from(answer: Answer, position: int) -> Iterator[bytes]:
    """Yields the body of an answer from a byte of the file on."""
    to_skip = position - answer.start
    for piece in answer.body():
        skipped = min(to_skip, len(piece))
        to_skip -= skipped
        if skipped < len(piece):
            yield piece[skipped:]

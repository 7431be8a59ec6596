"""One request for a part of a file over http(s), with everything about the answer checked."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from data_pipelines.errors import UserError
from data_pipelines.sources.interface import NoRangesError
from data_pipelines.sources.retrying import TransientError

_PIECE_BYTES = 1 << 20
# A server that sends less than this for long is stalling, though never silent.
_SLOWEST_BYTES_PER_SECOND = 16384
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Answer:
    """A server's answer to a request for a file from some byte on.

    Attributes:
        start: First byte of the file that it has; 0 where the server ignores ranges.
        stop: Byte after the last; None where the server does not say.
        num_file_bytes: Size of the whole file; None where the server does not say.
        response: Its body is still to be read.
        deadline: When the body must be here, by `time.monotonic`.
    """

    start: int
    stop: int | None
    num_file_bytes: int | None
    response: requests.Response
    deadline: float

    def body(self) -> Iterator[bytes]:
        """Yields the body in pieces of at most 1 MiB.

        Raises:
            TransientError: The connection broke or stalled, or the body ends too early.
        """
        num_bytes = 0
        while True:
            try:
                # As it comes, without decompression, and at most what one read of the socket gives:
                # filling up a piece would let a server hold us for ever with a byte now and then.
                piece = self.response.raw.read1(_PIECE_BYTES, decode_content=False)
            except (HTTPError, OSError) as error:
                # urllib3 puts the error below into the message already.
                what = error.args[0] if isinstance(error, ProtocolError) else error
                raise TransientError(
                    f"the connection broke after {num_bytes} bytes: {what}"
                ) from error
            if not piece:
                break
            num_bytes += len(piece)
            yield piece
            if time.monotonic() > self.deadline:
                raise TransientError(f"stalled: no more than {num_bytes} bytes came in time")
        if self.stop is not None and num_bytes != self.stop - self.start:
            raise TransientError(
                f"the answer has {num_bytes} bytes instead of {self.stop - self.start}"
            )


@contextmanager
def request_range(
    session: requests.Session,
    url: str,
    *,
    where: str,
    start: int,
    stop: int | None,
    timeout_seconds: float,
) -> Iterator[Answer]:
    """Asks for the bytes start … stop - 1 of a file.

    A server may answer with the whole file instead; `Answer.start` tells.

    Args:
        session: Its connections are used.
        url: The file.
        where: What messages call it.
        start: The first byte.
        stop: The byte after the last; None for all that follow.
        timeout_seconds: How long the server may be silent.

    Raises:
        UserError: The file is not there, access is denied, or the answer makes no sense.
        TransientError: Something that may work in a moment.
    """
    last = "" if stop is None else str(stop - 1)
    # `requests` would ask for compression, whose bytes have other positions.
    headers = {"Range": f"bytes={start}-{last}", "Accept-Encoding": "identity"}
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout_seconds)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TransientError(_reason(error)) from error
    except (requests.RequestException, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {_reason(error)}") from error
    with response:
        yield _checked(
            response, where=where, start=start, stop=stop, timeout_seconds=timeout_seconds
        )


def _checked(
    response: requests.Response,
    *,
    where: str,
    start: int,
    stop: int | None,
    timeout_seconds: float,
) -> Answer:
    _check_status(response, where=where, start=start)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise UserError(
            f"{where}: the server sends it compressed ({encoding}) though asked not to; switch "
            "that off for these files"
        )
    if response.status_code == 200:
        size = _number(response.headers.get("Content-Length"))
        first, after_last = 0, size
    else:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if match is None or match[1] is None:
            raise UserError(
                f"{where}: the server answers a request for bytes {start} … with Content-Range "
                f"{response.headers.get('Content-Range')!r}, which says nothing"
            )
        first, after_last, size = int(match[1]), int(match[2]) + 1, _number(match[3])
        if first != start or (stop is not None and after_last > stop):
            raise UserError(
                f"{where}: the server answers a request for bytes {start} … "
                f"{'' if stop is None else stop - 1} with bytes {first} … {after_last - 1}"
            )
    num_bytes = 0 if after_last is None else after_last - first
    patience = 2 * timeout_seconds + num_bytes / _SLOWEST_BYTES_PER_SECOND
    if after_last is None:
        patience = float("inf")
    return Answer(
        start=first,
        stop=after_last,
        num_file_bytes=size,
        response=response,
        deadline=time.monotonic() + patience,
    )


def _check_status(response: requests.Response, *, where: str, start: int) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    answer = f"the server answers {status} {response.reason}"
    if status in _TRANSIENT_STATUS:
        seconds = _number(response.headers.get("Retry-After"))
        raise TransientError(answer, retry_after=float(seconds or 0))
    if status == 416:
        size = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        ends = f"; it has {size[3]} bytes" if size is not None else ""
        raise UserError(f"{where}: cut short: it ends before byte {start}{ends}")
    if status in (404, 410):
        raise UserError(f"{where}: missing: {answer}")
    raise UserError(f"{where}: cannot be read: {answer}")


def no_ranges(where: str) -> NoRangesError:
    """Says that a server only sends whole files."""
    return NoRangesError(
        f"{where}: the server does not serve parts of a file (no range requests): give a "
        "cache_dir and a cache_limit, so that shards are fetched as a whole, or use another server"
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


def _reason(error: Exception) -> str:
    """Returns why a request failed, without the URL, which may hold passwords and tokens."""
    inner = error.args[0] if error.args else error
    if isinstance(inner, MaxRetryError):
        inner = inner.reason
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema)):
        inner = "no valid URL"
    return str(inner) or type(inner).__name__

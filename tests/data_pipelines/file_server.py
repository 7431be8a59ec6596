"""A web server for a folder, with range requests and, where a test wants them, faults."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Request(NamedTuple):
    """A request that came: which file, from which byte, to before which."""

    name: str
    start: int
    stop: int | None


class FileServer(ThreadingHTTPServer):
    """Serves the files below `directory`.

    Each of `faults` takes the place of the answer to one request, in this order, and `always` that
    of all others; `on_request` is called before every answer; `released` lets stalled answers end.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.requests: list[Request] = []
        self.num_connections = 0
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.on_request: Callable[[Request], None] = lambda request: None
        self.released = threading.Event()
        self.errors: list[BaseException | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def num_requests(self, name: str) -> int:
        return sum(request.name == name for request in self.requests)

    def process_request(self, request: object, client_address: object) -> None:
        self.num_connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # clients hang up when they have what they want
            self.errors.append(error)


@contextmanager
def serving(directory: Path) -> Iterator[FileServer]:
    with FileServer(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
            assert server.errors == []


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    # Small answers must not wait for the other side's acknowledgement.
    disable_nagle_algorithm = True
    server: FileServer

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, stop = 0, None
        if match is not None:
            start, stop = int(match[1]), int(match[2]) + 1 if match[2] else None
        request = Request(name, start, stop)
        self.server.requests.append(request)
        self.server.on_request(request)
        fault = self.server.faults.popleft() if self.server.faults else self.server.always
        try:
            (fault or Served())(self, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


Fault = Callable[[Handler, Request], None]


@dataclass
class Served:
    """Serves the file, changed in some ways.

    Attributes:
        ranges: Whether parts of files are served.
        stop_after: Sends so many bytes of the body and then closes the connection,
        stalls: or stays silent,
        trickles: or sends a byte now and then.
        flips_bit_at: Changes this byte of the file, if it is asked for.
        is_chunked: Sends no length.
        shifted_by: Sends another range than was asked for.
        headers: To send besides.
    """

    ranges: bool = True
    stop_after: int | None = None
    stalls: bool = False
    trickles: bool = False
    flips_bit_at: int | None = None
    is_chunked: bool = False
    shifted_by: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, handler: Handler, request: Request) -> None:
        path = handler.server.directory / request.name
        if not path.is_file():
            return status(404)(handler, request)
        content = path.read_bytes()
        start, stop = request.start + self.shifted_by, request.stop or len(content)
        if start >= len(content):
            return status(416, headers={"Content-Range": f"bytes */{len(content)}"})(
                handler, request
            )
        stop = min(stop + self.shifted_by, len(content))
        if self.flips_bit_at is not None:
            at = self.flips_bit_at
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        body = content[start:stop] if self.ranges else content
        handler.send_response(206 if self.ranges else 200)
        if self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        if self.is_chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            self._send_chunks(handler, body)
        else:
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            self._send(handler, body)
        return None

    def _send(self, handler: Handler, body: bytes) -> None:
        if self.stop_after is None:
            handler.wfile.write(body)
            return
        handler.wfile.write(body[: self.stop_after])
        handler.close_connection = True
        if self.stalls:
            handler.server.released.wait(30)
        if self.trickles:
            for byte in body[self.stop_after :]:
                if handler.server.released.is_set():
                    return
                handler.wfile.write(bytes([byte]))
                time.sleep(0.02)

    def _send_chunks(self, handler: Handler, body: bytes) -> None:
        body = body[: self.stop_after]
        handler.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        if self.stop_after is None:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True


def status(code: int, *, headers: dict[str, str] | None = None) -> Fault:
    def answer(handler: Handler, request: Request) -> None:
        handler.send_response(code)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang_up(handler: Handler, request: Request) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


def redirect(to: str) -> Fault:
    return lambda handler, request: status(302, headers={"Location": f"{to}/{request.name}"})(
        handler, request
    )

"""A real HTTP server in a thread for the tests of downloads: byte ranges, ETags, and faults to switch on."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

_BLOCK = 1 << 14


@dataclass
class Faults:
    """What the server does wrong, from the next request on.

    Attributes:
        ranges: whether byte ranges are served.
        etag: the version; None to send none.
        cut_after: bytes of the body after which a connection is cut, at every answer; None for never.
        cut_answers: how many more answers are cut.
        statuses: answers to the next requests, before anything else: (status, headers).
        seconds_a_block: how slow a body is.
        hide_size: whether bodies are chunked, so that nobody knows how long they are.
        flip_at: position of a byte of the file that is sent wrong.
        content_type: of the file.
        user: the only one who may read, as `user:password` in base64.
        redirect: where all requests are sent on to.
    """

    ranges: bool = True
    etag: str | None = '"v1"'
    cut_after: int | None = None
    cut_answers: int = 1_000_000
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    seconds_a_block: float = 0.0
    hide_size: bool = False
    flip_at: int | None = None
    content_type: str = "application/zip"
    user: str | None = None
    redirect: str | None = None


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path; counts what it does.

    Attributes:
        files: contents by path: bytes, or an open seekable file.
        faults: what goes wrong.
        requests: (path, Range header or empty) of every request.
        sent: bytes of bodies; a block counts from just before it goes out.
        busy: connections that are being served now.
        most_busy: the most there were at once.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes | BinaryIO] = {}
        self.faults = Faults()
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.busy = 0
        self.most_busy = 0

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        """Set all counters to zero, and all faults off."""
        self.faults = Faults()
        self.requests, self.sent, self.most_busy = [], 0, self.busy

    def process_request_thread(self, request, client_address) -> None:
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                self.busy -= 1

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer waits 40 ms
    server: FileServer

    def do_GET(self) -> None:
        faults, wanted = self.server.faults, self.headers.get("Range", "")
        with self.server.lock:
            self.server.requests.append((self.path, wanted))
            status = faults.statuses.pop(0) if faults.statuses else None
        content = self.server.files.get(self.path.partition("?")[0])
        if status is None and faults.redirect:
            status = 302, {"Location": faults.redirect}
        if status is None and faults.user and self.headers.get("Authorization") != f"Basic {faults.user}":
            status = 401, {}
        if status is not None or content is None:
            self._answer_empty(*(status or (404, {})))
            return
        size = len(content) if isinstance(content, bytes) else content.seek(0, 2)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        condition = self.headers.get("If-Range")
        if not match or not faults.ranges or (condition and condition != faults.etag):
            self._answer(content, 200, 0, size, {})
            return
        start, stop = int(match[1]), min(int(match[2]) + 1, size)
        if start >= size:
            self._answer_empty(416, {"Content-Range": f"bytes */{size}"})
            return
        self._answer(content, 206, start, stop, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _answer_empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, content: bytes | BinaryIO, status: int, start: int, stop: int, headers: dict[str, str]) -> None:
        faults = self.server.faults
        self.send_response(status)
        length = {"Transfer-Encoding": "chunked"} if faults.hide_size else {"Content-Length": str(stop - start)}
        version = {"ETag": faults.etag} if faults.etag else {}
        for name, value in {**headers, **length, **version, "Content-Type": faults.content_type}.items():
            self.send_header(name, value)
        self.end_headers()
        last = stop
        if faults.cut_after is not None and faults.cut_answers > 0 and stop - start > faults.cut_after:
            faults.cut_answers -= 1
            last = start + faults.cut_after
        for first in range(start, last, _BLOCK):
            block = self._read(content, first, min(first + _BLOCK, last))
            if faults.flip_at is not None and first <= faults.flip_at < first + len(block):
                at = faults.flip_at - first
                block = block[:at] + bytes([block[at] ^ 0xFF]) + block[at + 1 :]
            with self.server.lock:  # before the client has it, so that what it has is always counted
                self.server.sent += len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if faults.hide_size else block)
            time.sleep(faults.seconds_a_block)
        if faults.hide_size and last == stop:
            self.wfile.write(b"0\r\n\r\n")
        if last < stop:
            self.close_connection = True

    def _read(self, content: bytes | BinaryIO, start: int, stop: int) -> bytes:
        if isinstance(content, bytes):
            return content[start:stop]
        with self.server.lock:
            content.seek(start)
            return content.read(stop - start)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve() -> Iterator[FileServer]:
    """Run a server as long as the block."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

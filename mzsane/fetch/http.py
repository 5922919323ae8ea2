"""Files on HTTP servers, read by byte ranges: gentle to the server, and continued where a connection broke.

Servers that ask to wait (429, 503 with Retry-After) are waited for. That all bytes are of one version of the file is
checked with its ETag, or else its date, and its size. What is said of an address leaves out its query, which may hold
a token.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ResponseError,
    SSLError,
)

from mzsane.addresses import check_openable, show_address
from mzsane.errors import ConfigError, StoreError
from mzsane.fetch.access import authorise, open_pool

_BLOCK = 1 << 16  # bytes
_START = 4  # bytes of the file's start that come with the first answer
_BACKOFF = 1.0  # seconds before the second attempt; doubles
_ATTEMPTS = 7  # without a new byte
_CONNECT_ATTEMPTS = 3
_LONGEST_WAIT = 600.0  # seconds that a server may ask for
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_REDIRECTS = urllib3.Retry(
    total=None, connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False
)
_BUSY = (429, 503)
_PASSING = (408, 500, 502, 504)


class _TryAgainError(Exception):
    """An answer after which another attempt makes sense, perhaps after the seconds that the server asks for."""

    def __init__(self, text: str, seconds: float | None = None) -> None:
        super().__init__(text)
        self.seconds = seconds


class RemoteFile:
    """A file on a server. Making one asks the server about it; streams may run in several threads.

    Args:
        url: its http(s) address.
        report: told what is waited for.

    Attributes:
        address: the address for people, without user, password, query and tokens.
        size: bytes; None when the server does not say.
        ranges: whether the server sends any part of it.
        version: ETag or date, to tell whether the file has changed; empty when the server sends neither.
        start: its first bytes, up to four.
        moved: bytes received so far.
        requests: requests sent so far.

    Raises:
        ConfigError: there is no such file, or access is denied.
        StoreError: the server cannot be reached or fails.
    """

    def __init__(self, url: str, report: Callable[[str], None] = lambda text: None) -> None:
        try:
            parts = urlsplit(check_openable(url))
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"{show_address(url)} cannot be fetched: {error}") from None
        self._host = parts.hostname or ""
        self.address = show_address(url)
        self.moved = 0
        self.requests = 0
        self._url = url
        self._report = report
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._not_before = 0.0
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "mzsane", **authorise(self._host)}
        self._pool = open_pool(parts.scheme, self._host)
        self.ranges, self.size, self.version, self.start = self._inspect()

    def stop(self) -> None:
        """End the streams of other threads at their next block."""
        self._stopped.set()

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """Yield the bytes from `start` to `stop` (the end if None); a broken connection is taken up again.

        Without ranges the server sends everything from the first byte on, and what comes before `start` is dropped.

        Raises:
            ConfigError: the file is gone, or access is denied.
            StoreError: the file has changed, or the server cannot be reached or fails.
        """
        stop = self.size if stop is None else stop
        position, failures = start, 0
        while stop is None or position < stop:
            before = position
            try:
                with self._get(self._select_range(position, stop)) as response:
                    self._check_version(response, position)
                    skipped = 0 if self.ranges else position
                    for block in self._receive(response, skipped, None if stop is None else stop - position):
                        position += len(block)
                        failures = 0
                        yield block
                if stop is None:
                    return
                if position == before:
                    raise _TryAgainError("it sent nothing")
            except (_TryAgainError, HTTPError) as error:
                failures += 1
                self._wait(error, failures)

    def _inspect(self) -> tuple[bool, int | None, str, bytes]:
        failures = 0
        while True:
            try:
                with self._get({"Range": f"bytes=0-{_START - 1}"}) as response:
                    ranges = response.status == 206
                    total = response.headers.get("Content-Range", "").rpartition("/")[2]
                    length = total if ranges or response.status == 416 else response.headers.get("Content-Length", "")
                    size = int(length) if length.isdecimal() else None
                    if size != 0 and response.headers.get("Content-Type", "").startswith("text/html"):
                        raise ConfigError(
                            f"{self.address} is a web page and not a file: give the link of the file itself"
                        )
                    if size is None and response.headers.get("Transfer-Encoding") != "chunked":
                        raise StoreError(f"{self.address}: the server does not say where it ends; use another source")
                    ranges = ranges and size is not None
                    # An empty file has no first byte, for which servers answer 416.
                    start = b"" if size == 0 else b"".join(self._receive(response, 0, _START))
                    return ranges, size, _read_version(response), start
            except (_TryAgainError, HTTPError) as error:
                failures += 1
                self._wait(error, failures)

    def _select_range(self, position: int, stop: int | None) -> dict[str, str]:
        if not self.ranges or stop is None:
            return {}
        wanted = {"Range": f"bytes={position}-{stop - 1}"}
        if self.version and not self.version.startswith("W/"):
            wanted["If-Range"] = self.version
        return wanted

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        self._pause(self._not_before - time.monotonic())
        with self._lock:
            self.requests += 1
        response = self._pool.request(
            "GET",
            self._url,
            headers={**self._headers, **headers},
            preload_content=False,
            retries=_REDIRECTS,
            timeout=_TIMEOUT,
        )
        try:
            self._check_status(response)
            yield response
        finally:
            # Closed first: a connection with unread bytes must not go back to the pool open.
            response.close()
            response.release_conn()

    def _receive(self, response: urllib3.BaseHTTPResponse, skipped: int, wanted: int | None) -> Iterator[bytes]:
        while wanted is None or wanted > 0:
            block = self._read(response, _BLOCK if wanted is None else min(_BLOCK, skipped + wanted))
            if not block:
                return
            dropped = min(skipped, len(block))
            skipped -= dropped
            if block := block[dropped:]:
                wanted = None if wanted is None else wanted - len(block)
                yield block

    def _read(self, response: urllib3.BaseHTTPResponse, amount: int) -> bytes:
        if self._stopped.is_set():
            raise StoreError(f"the download of {self.address} was stopped; run it again to continue")
        data = response.read1(amount, decode_content=False)
        with self._lock:
            self.moved += len(data)
        return data

    def _check_status(self, response: urllib3.BaseHTTPResponse) -> None:
        status = response.status
        if status in (200, 206) or (status == 416 and response.headers.get("Content-Range") == "bytes */0"):
            return
        if status in (404, 410):
            raise ConfigError(f"there is no {self.address} (the server answers {status}): check the address")
        if status in (401, 403):
            raise ConfigError(
                f"the server does not give {self.address} to everybody (it answers {status}): put your user and "
                f"password for {self._host} in ~/.netrc, or use another source"
            )
        if status == 416:
            raise self._changed()
        if status in _BUSY:
            raise _TryAgainError(f"the server is busy (it answers {status})", _read_wait(response))
        if status in _PASSING:
            raise _TryAgainError(f"the server failed (it answers {status})")
        raise StoreError(f"{self.address}: the server answers {status}; try again later, or use another source")

    def _check_version(self, response: urllib3.BaseHTTPResponse, position: int) -> None:
        if self.ranges:
            span, _, total = response.headers.get("Content-Range", "").rpartition("/")
            if (
                response.status != 206
                or not span.startswith(f"bytes {position}-")
                or total not in ("*", str(self.size))
            ):
                raise self._changed()
        if self.version != _read_version(response):
            raise self._changed()

    def _changed(self) -> StoreError:
        return StoreError(
            f"{self.address} changed on the server while it was read: run again, and the download starts anew"
        )

    def _wait(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt, or explain why there is none."""
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        # A server that has answered before is worth more patience than an address that may be wrong.
        attempts = _ATTEMPTS if self.moved else _CONNECT_ATTEMPTS
        if isinstance(cause, SSLError) and failures >= attempts:
            raise StoreError(
                f"no secure connection to {self._host} ({cause}): check the clock and the address; for a certificate "
                "authority of your own set SSL_CERT_FILE"
            ) from None
        if isinstance(cause, LocationParseError):
            raise ConfigError(f"{self.address} is not an address: {cause}") from None
        if isinstance(cause, ResponseError):
            raise StoreError(f"{self.address} redirects without end; use another source") from None
        if isinstance(cause, (NewConnectionError, ConnectTimeoutError, ProxyError)) and failures >= attempts:
            raise StoreError(
                f"{self._host} cannot be reached ({type(cause).__name__}): is there a network, and is a proxy needed "
                "(https_proxy)? What is already fetched is kept: run again to continue"
            ) from None
        asked = error.seconds if isinstance(error, _TryAgainError) else None
        if asked is not None and asked > _LONGEST_WAIT:
            raise StoreError(
                f"{self._host} asks to wait {asked / 60:.0f} minutes before the next request: run again after that, "
                "and the download continues"
            ) from None
        if failures >= _ATTEMPTS:
            raise StoreError(
                f"{self.address} cannot be fetched, {failures} attempts failed, the last because {_explain(cause)}; "
                "what is already fetched is kept: run again later to continue"
            ) from None
        seconds = _BACKOFF * 2 ** (failures - 1) if asked is None else asked
        if asked is not None:
            # The other thread has to wait too.
            self._not_before = max(self._not_before, time.monotonic() + asked)
        self._report(f"waiting {seconds:.0f} s for {self._host}: {_explain(cause)}")
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self._stopped.wait(seconds):
            raise StoreError(f"the download of {self.address} was stopped; run it again to continue")


def _read_version(response: urllib3.BaseHTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _read_wait(response: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return urllib3.Retry().get_retry_after(response)
    except InvalidHeader:
        return None


def _explain(cause: Exception) -> str:
    if isinstance(cause, _TryAgainError):
        return str(cause)
    return "the connection broke" if isinstance(cause, ProtocolError) else f"of a {type(cause).__name__}"

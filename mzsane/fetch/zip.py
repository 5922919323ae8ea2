"""Zip archives on servers with byte ranges: the directory first, then only the members that are wanted.

Parsing is left to `zipfile`, over a seekable file that turns its reads into few requests.
"""

import io
import shutil
import struct
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Generator, Sequence

from mzsane.errors import ConfigError
from mzsane.fetch.http import RemoteFile
from mzsane.fetch.members import Member, Span, locate_members, plan_spans, select_names

_TAIL = 1 << 14  # bytes read ahead from the end, where the directory is
_LARGEST_DIRECTORY = 1 << 29  # bytes; some millions of members
_SPARE = 0.09  # unwanted bytes that may be moved to save requests, a wanted byte
_COPY = 1 << 20
_NOT_A_ZIP = (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError, ValueError, OSError)
_DAMAGED = (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, struct.error, UnicodeDecodeError)


class RangeFile(io.RawIOBase):
    """A remote file as a seekable one: its end is kept in memory, and a planned span is one request.

    Args:
        remote: the file; its server sends ranges.
        tail: the last bytes of the file, when they are there already.
    """

    def __init__(self, remote: RemoteFile, tail: bytes = b"") -> None:
        assert remote.ranges
        assert remote.size is not None
        self._remote = remote
        self._size = remote.size
        self.tail = tail
        self._position = 0
        self._spans: Sequence[Span] = ()
        self._stream: Generator[bytes] | None = None
        self._block = memoryview(b"")
        self._at = 0  # where the stream is, its block included
        self._until = 0  # where the stream ends
        if not tail:
            self._extend_tail(max(0, self._size - _TAIL))

    def plan(self, spans: Sequence[Span]) -> None:
        """Set the spans that are about to be read, in order."""
        self._spans = spans

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is requested.

        Raises:
            OSError: it would be before the start.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        """Read to the end, in one request and not in many small ones."""
        return self.read(max(0, self._size - self._position)) or b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, less only at the end of the file."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        done = 0
        while done < wanted:
            tail_start = self._size - len(self.tail)
            if self._position >= tail_start:
                first = self._position - tail_start
                piece = memoryview(self.tail)[first : first + wanted - done]
            elif self._position + wanted - done >= tail_start and not self._find_span(self._position):
                self._extend_tail(self._position)
                continue
            else:
                piece = self._take(min(wanted - done, tail_start - self._position))
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def release(self) -> None:
        """End the running request, so that its connection is free for others."""
        if self._stream:
            self._stream.close()
        self._stream, self._block, self._at, self._until = None, memoryview(b""), 0, 0

    def _take(self, most: int) -> memoryview:
        """Return at least one byte at the position, from the running request or a new one."""
        if self._stream is None or not self._at <= self._position < self._until:
            span = self._find_span(self._position)
            self.release()
            stop = span.stop if span else self._position + most
            self._at, self._until = self._position, min(stop, self._size - len(self.tail))
            self._stream = self._remote.stream(self._at, self._until)
        while self._at < self._position or not self._block:
            if not self._block:
                self._block = memoryview(next(self._stream))
            skipped = min(len(self._block), self._position - self._at)
            self._block = self._block[skipped:]
            self._at += skipped
        piece, self._block = self._block[:most], self._block[most:]
        self._at += len(piece)
        if self._at >= self._until:
            self.release()
        return piece

    def _find_span(self, position: int) -> Span | None:
        index = bisect_right(self._spans, position, key=lambda span: span.start) - 1
        return self._spans[index] if index >= 0 and position < self._spans[index].stop else None

    def _extend_tail(self, start: int) -> None:
        if self._size - start > _LARGEST_DIRECTORY:
            raise ConfigError(
                f"{self._remote.address} is not a zip that can be read: its directory claims over "
                f"{_LARGEST_DIRECTORY >> 20} MiB"
            )
        self.tail = b"".join(self._remote.stream(start, self._size - len(self.tail))) + self.tail


class RemoteZip:
    """A zip archive on a server with byte ranges. Members may be fetched in several threads.

    Args:
        remote: the file.
        tail: `tail` of an earlier object of the same file: then nothing has to be fetched.

    Attributes:
        tail: the end of the file, with the directory.

    Raises:
        ConfigError: it is not a zip, or a damaged one.
        StoreError: the server fails.
    """

    def __init__(self, remote: RemoteFile, tail: bytes = b"") -> None:
        self._remote = remote
        self._local = threading.local()
        file = RangeFile(remote, tail)
        self._archive = self._parse(file)
        self.tail = file.tail

    def select(self, epochs: Sequence[int] | None, patterns: Sequence[str]) -> list[Member]:
        """Choose members (see `select_names`) and find them, in the order of the file.

        Raises:
            ConfigError: an epoch is not there, nothing is chosen, or a chosen member is not safe.
        """
        where = self._remote.address
        infos = [info for info in self._archive.infolist() if not info.is_dir()]
        names = select_names([info.filename for info in infos], epochs, patterns, where)
        return locate_members(infos, self._archive.start_dir, names, where)

    def plan(self, pieces: Sequence[Sequence[Member]]) -> list[list[Span]]:
        """Plan the requests for each piece, so that all bytes moved are at most 1.1 times those wanted, if possible.

        It is not possible where the directory alone is more than a tenth of what is wanted.
        """
        wanted = sum(member.size for piece in pieces for member in piece)
        share = max(0.0, _SPARE - len(self.tail) / max(wanted, 1))
        return [plan_spans(piece, int(share * sum(member.size for member in piece))) for piece in pieces]

    def repack(self, members: Sequence[Member], spans: Sequence[Span]) -> bytes:
        """Fetch members and return a zip of them, stored without compression; the same members, the same bytes.

        Raises:
            ConfigError: a member is damaged.
            StoreError: the server fails.
        """
        file, archive = self._open_local()
        file.plan(spans)
        try:
            return self._copy_members(archive, members)
        finally:
            file.release()

    def _copy_members(self, archive: zipfile.ZipFile, members: Sequence[Member]) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
            for member in members:
                info = zipfile.ZipInfo(member.info.filename)
                info.file_size = member.info.file_size
                info.external_attr = 0o644 << 16
                try:
                    with archive.open(member.info) as data, packed.open(info, "w") as copy:
                        shutil.copyfileobj(data, copy, _COPY)
                except _DAMAGED as error:
                    raise ConfigError(
                        f"member {member.info.filename} of {self._remote.address} is damaged ({error}): choose members "
                        "without it, or tell those who publish the archive"
                    ) from None
                if info.file_size != member.info.file_size:
                    raise ConfigError(
                        f"member {member.info.filename} of {self._remote.address} unpacks to {info.file_size} bytes "
                        f"and not to the {member.info.file_size} that are promised: choose members without it"
                    )
        return target.getvalue()

    def _open_local(self) -> tuple[RangeFile, zipfile.ZipFile]:
        # A file has one position and one request, so every thread has its own.
        if not hasattr(self._local, "opened"):
            file = RangeFile(self._remote, self.tail)
            self._local.opened = file, self._parse(file)
        opened: tuple[RangeFile, zipfile.ZipFile] = self._local.opened
        return opened

    def _parse(self, file: RangeFile) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(file)
        except _NOT_A_ZIP as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{self._remote.address} is not a zip that can be read ({error}): was its upload complete?"
            ) from None

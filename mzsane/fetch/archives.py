"""Zip and tar archives as sources. Nothing is ever written where a member's name says.

Refused are names that lead out of the archive, links and devices, encrypted members, members that come twice, and
members that unpack to more than the limit or to far more than their packed size (zip bombs). What an archive declares
is checked first, and no more than that is unpacked.
"""

import gzip
import io
import re
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from mzsane.errors import ConfigError, StoreError
from mzsane.fetch.zip_members import DIRECTORY_ERRORS, HEADER_BYTES, RATIO, ZipMember, list_members, refuse_size

Place = TypeVar("Place")
_PIECE_BYTES = 2**20
_FREE_BYTES = 2**26  # that a gzip file may unpack to whatever it has
_HEADER_BYTES = 2**20  # of a member of a tar; long names and their like
_INNER = re.compile(r"(?<!\.pth)(?<!\.pt)\.(zip|tar|tgz|tar\.\w+|7z|rar|gz|bz2|xz|zst)$", re.IGNORECASE)
_PART = re.compile(r"\.(zip|tar|7z|rar|tgz|tar\.gz)\.(\d{2,3}|part\d+)$|\.[zr]\d{2}$|\.part\d+\.rar$", re.IGNORECASE)
_Stamped = tuple[str, int, int]  # path, bytes, time of the last change: what tells versions of a file apart


class Members(Generic[Place]):
    """What an archive holds: the places of the members that can be read, and why the others are refused."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.refused: dict[str, str] = {}

    def add(self, name: str, place: Place, reason: str | None) -> None:
        """Add a member, with the reason to refuse it if there is one besides its name."""
        reason = refuse_name(name) or reason
        if not reason and _INNER.search(name):
            reason = "an archive within the archive is not opened: unpack it, and give the folder"
        if name in self.places or name in self.refused:
            self.places.pop(name, None)
            reason = "a member that is in the archive twice"
        if reason:
            self.refused[name] = f"refused: {reason}"
        else:
            self.places[name] = place

    def find(self, name: str) -> Place:
        """Return the place of a member.

        Raises:
            ConfigError: there is none, or it is refused.
        """
        if name not in self.places:
            raise ConfigError(self.refused.get(name, "no such member in the archive"))
        return self.places[name]


class ZipSource:
    """The members of one or more zip files, as if they were one.

    Args:
        paths: local zip files.
        max_file_bytes: larger members are not read.
        address: where the archive is, for people; the first path if not given.

    Raises:
        ConfigError: a file is missing or is no zip.
    """

    parallel_reads = 1

    def __init__(self, paths: Sequence[str | Path], max_file_bytes: int, address: str | None = None) -> None:
        self.address = address or str(paths[0])
        self.max_file_bytes = max_file_bytes
        self._files = tuple(_stamp(str(path), self.address) for path in paths)
        self._members()

    def names(self) -> list[str]:
        """Return the names of all members that can be read."""
        return sorted(self._members().places)

    def refused(self) -> Mapping[str, str]:
        """Return the names of the members that are not safe to read, each with the reason."""
        return self._members().refused

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        path, member = self._members().find(name)
        start = member.locate(_read_piece(path, member.header, HEADER_BYTES))
        return member.unpack(_read_piece(path, start, member.packed))

    def _members(self) -> Members[tuple[str, ZipMember]]:
        return _index_zips(self._files, self.max_file_bytes, self.address)


class TarSource:
    """The members of an uncompressed tar file.

    Args:
        path: a local tar file.
        max_file_bytes: larger members are not read.
        address: where the archive is, for people; the path if not given.

    Raises:
        ConfigError: the file is missing or is no tar.
    """

    parallel_reads = 1

    def __init__(self, path: str | Path, max_file_bytes: int, address: str | None = None) -> None:
        self.address = address or str(path)
        self.max_file_bytes = max_file_bytes
        self._file = _stamp(str(path), self.address)
        self._members()

    def names(self) -> list[str]:
        """Return the names of all members that can be read."""
        return sorted(self._members().places)

    def refused(self) -> Mapping[str, str]:
        """Return the names of the members that are not safe to read, each with the reason."""
        return self._members().refused

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        start, size = self._members().find(name)
        data = _read_piece(self._file[0], start, size)
        if len(data) != size:
            raise ConfigError(f"damaged: the archive ends after {len(data)} of {size} bytes")
        return data

    def _members(self) -> Members[tuple[int, int]]:
        return _index_tar(self._file, self.max_file_bytes, self.address)


def unpack_gzip(packed: Path, target: Path, address: str) -> Path:
    """Unpack a gzip file and return the path of the result.

    Raises:
        ConfigError: it is missing, damaged, or unpacks to far more than its size.
    """
    try:
        done, free = 0, min(_FREE_BYTES, max(_PIECE_BYTES, RATIO * packed.stat().st_size))
        with packed.open("rb") as file, gzip.open(file) as source, target.open("wb") as unpacked:
            while piece := source.read(_PIECE_BYTES):
                done += len(piece)
                if done > free + RATIO * file.tell():  # seen where it begins, not when the disk is full
                    raise ConfigError(f"archive {address} is refused: it unpacks to more than {RATIO} times its size")
                unpacked.write(piece)
    except FileNotFoundError:
        raise ConfigError(f"there is no archive {address}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"archive {address} cannot be unpacked: {error}") from None
    except OSError as error:
        raise StoreError(f"archive {address} cannot be unpacked to {target.parent}: {error}") from None
    return target


def refuse_name(name: str) -> str | None:
    """Return why the name of a member is not safe, or None when it is."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that leads out of the archive"
    if "\\" in name:
        return "a name with backslashes: pack the files again with names that have / between folders"
    if odd := next(
        (letter for letter in name if not letter.isprintable() and unicodedata.category(letter) != "Zs"), None
    ):
        return f"a name with characters that have no place in one (U+{ord(odd):04X}): rename the file"
    return None


def explain_file(name: str) -> str | None:
    """Return what to do with an archive that is given as a source and is of no kind that is read; None for others."""
    read = "archives that are read end with .zip, .tar, .tar.gz or .tgz"
    if _PART.search(name):
        return f"it is a part of a split archive: join or unpack the parts, and give the folder; {read}"
    if _INNER.search(name):
        return f"it is an archive of a kind that is not read: unpack it, and give the folder; {read}"
    return None


class _Bounded(io.FileIO):
    """A file of which only small pieces are read: what a tar's headers claim to need is not believed."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes.

        Raises:
            ReadError: too many are asked for.
        """
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a member has a header of {size} bytes")
        return super().read(size)


# Chunks of work bring their source along, and directories of archives can be large: each is read once a process.
@lru_cache(maxsize=4)
def _index_zips(files: tuple[_Stamped, ...], max_file_bytes: int, address: str) -> Members[tuple[str, ZipMember]]:
    members: Members[tuple[str, ZipMember]] = Members()
    for path, *_ in files:
        for member in _list_zip(path, address):
            reason, name = None, member.name.replace("\\", "/")  # some tools of Windows write backslashes
            if name.endswith("/"):
                continue
            if refuse_name(name):
                name = member.name
            if stat.S_IFMT(member.mode) not in (0, stat.S_IFREG):
                reason = "a link or device"
            elif member.encrypted:
                reason = "an encrypted member"
            members.add(name, (path, member), reason or refuse_size(member.size, member.packed, max_file_bytes))
    return members


def _list_zip(path: str, address: str) -> Iterator[ZipMember]:
    try:
        with Path(path).open("rb") as file:
            yield from list_members(file)
    except ConfigError as error:
        raise ConfigError(f"archive {address} is no zip file: {error}") from None


@lru_cache(maxsize=4)
def _index_tar(file: _Stamped, max_file_bytes: int, address: str) -> Members[tuple[int, int]]:
    members: Members[tuple[int, int]] = Members()
    try:
        with _Bounded(file[0]) as data, tarfile.open(fileobj=data, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.size < 0:
                    raise tarfile.ReadError(f"member {member.name[-60:]!r} has {member.size} bytes")
                if not member.isdir():
                    regular = member.isfile() and member.sparse is None
                    reason = None if regular else "a link, device or sparse file"
                    members.add(
                        member.name.removeprefix("./"),
                        (member.offset_data, member.size),
                        reason or refuse_size(member.size, member.size, max_file_bytes),
                    )
    except (tarfile.TarError, *DIRECTORY_ERRORS) as error:
        raise ConfigError(f"archive {address} is no tar file, or truncated or damaged: {error}") from None
    return members


def _stamp(path: str, address: str) -> _Stamped:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"there is no archive {address}: {error}") from None
    return path, status.st_size, status.st_mtime_ns


def _read_piece(path: str, start: int, size: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise StoreError(f"archive {path} cannot be read: {error}") from None

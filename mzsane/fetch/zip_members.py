"""The members of a zip file as places in it: found once, then each read with one seek and checked.

Python's `zipfile` reads the directory; reading members ourselves bounds what comes out of a packed one, and is several
times faster for the thousands of small records that checkpoints consist of.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mzsane.errors import ConfigError

ZIP_START = b"PK\x03\x04"
DIRECTORY_ERRORS = (  # what a damaged directory makes Python's readers raise; a RuntimeError for unknown versions
    *(zipfile.BadZipFile, struct.error, EOFError, OSError),
    *(ValueError, IndexError, OverflowError, RuntimeError, MemoryError),
)
_HEADER = struct.Struct("<4s22xHH")
HEADER_BYTES = _HEADER.size
_PACKED = 8  # deflate, the one packing that is read
RATIO = 200  # unpacked over packed bytes; weights hardly pack at all, those of very sparse networks 20 to 50 times
_FREE_BYTES = 2**20  # below this any ratio will do
_DIRECTORY_START = b"PK\x01\x02"
_MEMBERS = 100_000  # of a checkpoint file


@dataclass(frozen=True, slots=True)
class ZipMember:
    """Where a member of a zip file is: its header, bytes packed and unpacked, how it is packed, and its checksum."""

    name: str
    header: int
    packed: int
    size: int
    method: int
    crc: int
    mode: int
    encrypted: bool

    def locate(self, header: bytes) -> int:
        """Return where the member's data start.

        Args:
            header: the 30 bytes at `self.header`.

        Raises:
            ConfigError: there is no header of a member.
        """
        if len(header) < _HEADER.size or not header.startswith(ZIP_START):
            raise ConfigError("damaged: a member is not where the zip's directory says")
        _, name, extra = _HEADER.unpack_from(header)
        return self.header + _HEADER.size + int(name) + int(extra)

    def check(self, data: bytes | memoryview) -> None:
        """Check data as they are in the file, for a member that is not packed.

        Raises:
            ConfigError: they are not what was stored.
        """
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise ConfigError(f"damaged: the checksum of member {self.name[-80:]} is wrong")

    def unpack(self, data: bytes) -> bytes:
        """Return the member's bytes from those that are in the file.

        Raises:
            ConfigError: they are not what was stored.
        """
        if self.method == zipfile.ZIP_STORED:
            self.check(data)
            return data
        if self.method != _PACKED:
            raise ConfigError(f"packed by a method that is not read (number {self.method}): use deflate")
        try:
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        except zlib.error as error:
            raise ConfigError(f"damaged: {error}") from None
        self.check(unpacked)
        return unpacked


def refuse_size(unpacked: int, packed: int, limit: int) -> str | None:
    """Return why something that is packed is not unpacked; None when it can be."""
    if max(unpacked, packed) > limit:
        return f"too large, {max(unpacked, packed)} bytes where max_file_bytes is {limit}"
    if unpacked > max(_FREE_BYTES, RATIO * packed):
        return f"a bomb, {packed} bytes that unpack to {unpacked}"
    return None


def list_checkpoint(data: bytes, limit: int) -> list[ZipMember]:
    """Return the members of a checkpoint file, when all of them together can be unpacked.

    Raises:
        ConfigError: it is no zip, damaged, a bomb, or too large.
    """
    if data.count(_DIRECTORY_START) > _MEMBERS:
        raise ConfigError(f"too large: the zip has more than {_MEMBERS} members")
    members = list(list_members(io.BytesIO(data)))
    if any(member.encrypted for member in members):
        raise ConfigError("encrypted: a checkpoint with a password is not read; save it without one")
    if sum(member.packed for member in members) > len(data):
        raise ConfigError("truncated or damaged: the zip's members lie within each other")
    if reason := refuse_size(sum(member.size for member in members), len(data), limit):
        raise ConfigError(f"too large: {reason.removeprefix('too large, ')}")
    return members


def list_members(file: BinaryIO) -> Iterator[ZipMember]:
    """Yield the members of a zip file, folders left out.

    Raises:
        ConfigError: it is no zip, or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except DIRECTORY_ERRORS as error:
        raise ConfigError(f"truncated or damaged: {' '.join(str(error).split())[:200]}") from None
    for member in members:
        if member.header_offset < 0:
            raise ConfigError("truncated or damaged: a member starts before the file; join the parts if it is split")
        if not member.filename.endswith("/"):
            yield ZipMember(
                name=member.filename,
                header=member.header_offset,
                packed=member.compress_size,
                size=member.file_size,
                method=member.compress_type,
                crc=member.CRC,
                mode=member.external_attr >> 16,
                encrypted=bool(member.flag_bits & 0x1),
            )

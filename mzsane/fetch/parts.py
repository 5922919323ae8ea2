"""A whole remote file in parts, and its checksum over them."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

from mzsane.errors import StoreError
from mzsane.fetch.http import RemoteFile
from mzsane.fetch.pieces import Piece, PieceNotes, Progress, fetch_pieces
from mzsane.store.artifacts import FileEntry


def fetch_parts(piece_bytes: int, remote: RemoteFile, notes: PieceNotes, progress: Progress) -> list[str]:
    """Fetch a whole file in parts.

    With ranges, the parts that are there are not fetched again. Without, everything is, and only not stored again.

    Args:
        piece_bytes: size of a part.
        remote: the file.
        notes: the parts that are there, and those to come.
        progress: told the size before, and how far it is.

    Returns:
        The names of the parts, in order.

    Raises:
        ConfigError: the server does not give the file.
        StoreError: the server or the store fails.
    """
    if not remote.ranges or remote.size is None:
        return _fetch_stream(piece_bytes, remote, notes, progress)
    pieces = []
    for number, start in enumerate(range(0, remote.size, piece_bytes)):
        stop = min(start + piece_bytes, remote.size)
        pieces.append(Piece(_name_part(number), stop - start, partial(_read_span, remote, start, stop)))
    fetch_pieces(pieces, remote, notes, progress, f"{len(pieces)} pieces")
    return [piece.name for piece in pieces]


def verify_parts(
    entries: Sequence[FileEntry], checksums: Mapping[str, str | None], remote: RemoteFile, notes: PieceNotes
) -> None:
    """Check the checksums of the whole file, as far as they are known, over its stored parts.

    Raises:
        StoreError: one is wrong; the parts are removed.
    """
    expected = {method: value for method, value in checksums.items() if value}
    if not expected:
        return
    digests = {method: hashlib.new(method, usedforsecurity=False) for method in expected}
    for entry in entries:
        data = notes.read_piece(entry)
        for digest in digests.values():
            digest.update(data)
    for method, value in expected.items():
        if digests[method].hexdigest() != value:
            notes.discard()
            raise StoreError(
                f"{remote.address} is not the file that was meant: its {method} is {digests[method].hexdigest()}, and "
                f"{value} was expected; what was fetched is removed. Check the setting and the source's page"
            )


def _fetch_stream(piece_bytes: int, remote: RemoteFile, notes: PieceNotes, progress: Progress) -> list[str]:
    there = notes.read()
    progress.total = remote.size
    progress.say(0, "the server sends no byte ranges, so that a stopped download starts again")
    names: list[str] = []
    done = 0
    with closing(remote.stream()) as blocks:
        for data in _cut(blocks, piece_bytes):
            names.append(_name_part(len(names)))
            entry = there.get(names[-1])
            if entry is None or entry.sha256 != hashlib.sha256(data).hexdigest():
                notes.save(names[-1], data)
            done += len(data)
            progress.say(done)
    return names


def _cut(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of blocks in parts of `size`, the last one shorter."""
    buffer = io.BytesIO()
    for block in blocks:
        rest = memoryview(block)
        while rest:
            taken = buffer.write(rest[: size - buffer.tell()])
            rest = rest[taken:]
            if buffer.tell() == size:
                yield buffer.getvalue()
                buffer = io.BytesIO()
    if buffer.tell():
        yield buffer.getvalue()


def _read_span(remote: RemoteFile, start: int, stop: int) -> bytes:
    buffer = io.BytesIO()
    for block in remote.stream(start, stop):
        buffer.write(block)
    return buffer.getvalue()


def _name_part(number: int) -> str:
    return f"part-{number:05d}.bin"

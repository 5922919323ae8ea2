"""The pieces of a download: two at a time, each a file of the artifact, noted when it is there.

A note is a partial file that names the uploaded piece. Killed at any point, the next call makes the pieces without one.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from mzsane.errors import CorruptArtifactError, StoreError
from mzsane.fetch.access import CONNECTIONS
from mzsane.fetch.http import RemoteFile
from mzsane.metrics import MetricSink
from mzsane.store.artifacts import ArtifactStore, FileEntry, Work

_MEGABYTE = 1_000_000
_SAY_SECONDS = 1.0
_NOTE = ".json"


@dataclass(frozen=True)
class Piece:
    """A file of the artifact that is still to be fetched.

    Attributes:
        name: of the file.
        size: bytes that have to be moved for it, as far as is known.
        fetch: returns the content of the file; called in a thread.
    """

    name: str
    size: int
    fetch: Callable[[], bytes]


class PieceNotes:
    """The pieces of a download that are already in the store, known by their notes.

    Attributes:
        partial: the unfinished files of the download.
    """

    def __init__(self, work: Work, store: ArtifactStore) -> None:
        self._work = work
        self._store = store
        self.partial = store.partial(work)

    def read(self) -> dict[str, FileEntry]:
        """Return the entries of the pieces that are there, by the name of the piece."""
        entries = {}
        for name in sorted(self.partial.names()):
            try:
                note = json.loads(self.partial.read(name)) if name.endswith(_NOTE) else {}
            except (CorruptArtifactError, FileNotFoundError):
                continue
            if "entry" in note:
                entry = FileEntry(**note["entry"])
                if self._store.files.size(f"{self._work.ref}/{entry.path}") == entry.bytes:
                    entries[name.removesuffix(_NOTE)] = entry
        return entries

    def read_piece(self, entry: FileEntry) -> bytes:
        """Return the content of a piece.

        Raises:
            StoreError: it is not there any more.
        """
        try:
            return self._store.files.read(f"{self._work.ref}/{entry.path}")
        except FileNotFoundError:
            where = self._store.address(self._work.ref)
            raise StoreError(f"{entry.path} vanished from {where}: run again to continue") from None

    def save(self, name: str, data: bytes) -> FileEntry:
        """Put a piece into the store, and note it."""
        entry = self._store.upload(self._work, name, data)
        self.partial.write(f"{name}{_NOTE}", json.dumps({"entry": entry.model_dump()}).encode())
        return entry

    def discard(self) -> None:
        """Remove all pieces, and everything that is noted."""
        for entry in self.read().values():
            self._store.files.remove(f"{self._work.ref}/{entry.path}")
        self.partial.clear()


class Progress:
    """Tells a sink how far a download is, in megabytes, and what it waits for.

    Attributes:
        total: bytes of the download; None when the server does not say.
    """

    def __init__(self, sink: MetricSink) -> None:
        self.total: int | None = None
        self._sink = sink
        self._waiting = ""
        self._said = 0.0

    def wait(self, text: str) -> None:
        """Keep what is waited for until something is said again. May be called in any thread."""
        self._waiting = f"; {text}"

    def say(self, done: int, note: str = "") -> None:
        """Tell how many bytes are done, and something about them; without a note at most once a second."""
        now = time.monotonic()
        if not note and now - self._said < _SAY_SECONDS:
            return
        self._said = now
        total = done if self.total is None else self.total
        text = "MB" + (f", {note}" if note else "") + self._waiting
        self._waiting = ""
        self._sink.progress(round(min(done, total) / _MEGABYTE), round(total / _MEGABYTE), text)


def fetch_pieces(pieces: Sequence[Piece], remote: RemoteFile, notes: PieceNotes, progress: Progress, note: str) -> None:
    """Fetch all pieces that are not noted yet, over two connections.

    Args:
        pieces: all pieces of the download.
        remote: what they are fetched from.
        notes: the pieces that are there, and those to come.
        progress: told the size before, and how far it is.
        note: what is downloaded, said once before.

    Raises:
        ConfigError: what is fetched is damaged, or the server does not give it.
        StoreError: the server or the store fails. What was fetched is kept.
    """
    there = notes.read()
    missing = [piece for piece in pieces if piece.name not in there]
    progress.total = sum(piece.size for piece in pieces)
    done = progress.total - sum(piece.size for piece in missing)
    progress.say(done, note)
    moved = remote.moved
    # Not `concurrent.futures.wait`: interrupted at the wrong moment it keeps locks that the threads then wait for.
    ended: SimpleQueue[Future[None]] = SimpleQueue()
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
        try:
            for piece in missing:
                pool.submit(_fetch_piece, piece, notes).add_done_callback(ended.put)
            left = len(missing)
            while left:
                with suppress(Empty):
                    ended.get(timeout=_SAY_SECONDS).result()
                    left -= 1
                progress.say(done + remote.moved - moved)
        except BaseException:
            remote.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.say(progress.total, "fetched")


def _fetch_piece(piece: Piece, notes: PieceNotes) -> None:
    notes.save(piece.name, piece.fetch())

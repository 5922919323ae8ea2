"""Unfinished files of a piece of work: written atomically, verified when they are read, removed at the end.

Each file ends with the sha256 of what is before it.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mzsane.errors import CorruptArtifactError
from mzsane.store.storage import Storage

FOLDER = "partial"  # of all unfinished files, below the root of a store
_DIGEST_BYTES = 32  # of sha256
_COPY_BYTES = 2**20


class Partial:
    """The unfinished files of one piece of work.

    Args:
        files: the store's files.
        ref: the name of the artifact that the work leads to, `kind/fingerprint`.
    """

    def __init__(self, files: Storage, ref: str) -> None:
        self._files = files
        self._folder = f"{FOLDER}/{ref}"

    def names(self) -> set[str]:
        """Return the names of the files that are there."""
        return self._files.list_names(self._folder)

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            CorruptArtifactError: they are not those that were written; the file is removed, so that it is made again.
            FileNotFoundError: there is no such file.
        """
        stored = self._files.read(f"{self._folder}/{name}")
        data, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise self._damaged(name)
        return data

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Yield the path of a verified copy of a file, for as long as the block runs: for files of any size.

        Raises:
            CorruptArtifactError: its bytes are not those that were written; the file is removed.
            FileNotFoundError: there is no such file.
        """
        with self._files.fetch(f"{self._folder}/{name}") as copy:
            if not _take_digest(copy):
                raise self._damaged(name)
            yield copy

    def write(self, name: str, content: bytes | Callable[[Path], None]) -> None:
        """Write a file; a reader sees all of it or none.

        Args:
            name: of the file.
            content: its bytes, or a function that writes them to a path, for files of any size.
        """
        target = f"{self._folder}/{name}"
        if isinstance(content, bytes):
            self._files.write(target, content + hashlib.sha256(content).digest())
            return
        with self._files.stage(self._folder) as staged:
            content(staged)
            with staged.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            with staged.open("ab") as file:
                file.write(digest)
            self._files.place(staged, target)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is fine."""
        self._files.remove(f"{self._folder}/{name}")

    def clear(self) -> None:
        """Remove everything."""
        self._files.remove(self._folder)

    def _damaged(self, name: str) -> CorruptArtifactError:
        self.remove(name)
        return CorruptArtifactError(f"{self._files.root}/{self._folder}/{name} was damaged; it is removed")


def _take_digest(path: Path) -> bool:
    """Cut the sha256 off the end of a file; tell whether it is that of the rest."""
    size = path.stat().st_size - _DIGEST_BYTES
    if size < 0:
        return False
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        left = size
        while data := file.read(min(left, _COPY_BYTES)):
            digest.update(data)
            left -= len(data)
        expected = file.read()
        file.truncate(size)
    return digest.digest() == expected

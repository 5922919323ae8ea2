"""Files that have the bytes they were promised to have: read from a storage, or copied to this machine."""

import hashlib
from pathlib import Path, PurePosixPath

from mzsane.errors import CorruptArtifactError
from mzsane.store.cache import Cache
from mzsane.store.manifest import REMEDY
from mzsane.store.storage import Storage


class VerifiedFiles:
    """The files of a storage, each read against its size and sha256.

    Args:
        files: where they are.
        cache: where copies of remote files go.
    """

    def __init__(self, files: Storage, cache: Cache) -> None:
        self._files, self._cache = files, cache

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """Return a local path of a file; a remote one is copied first, or found among the copies.

        Raises:
            CorruptArtifactError: it is missing, or its bytes are other ones.
        """
        if path := self._files.local_path(name):
            self._verify(path, name, size, sha256)
            return path
        cached = self._cache.folder / f"{sha256}{PurePosixPath(name).suffix}"
        if cached.exists() and hash_file(cached) == sha256:
            self._cache.touch(cached)
            return cached
        try:
            with self._cache.scratch() as fresh:
                self._files.download(name, fresh)
                self._verify(fresh, name, size, sha256)
                fresh.replace(cached)
        except FileNotFoundError:
            raise self._missing(name) from None
        self._cache.trim()
        return cached

    def read(self, name: str, size: int, sha256: str) -> bytes:
        """Return the bytes of a file; a remote one is not copied, so that any number can be read.

        Raises:
            CorruptArtifactError: it is missing, or its bytes are other ones.
        """
        try:
            data = self._files.read(name)
        except FileNotFoundError:
            raise self._missing(name) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._changed(name, len(data), size)
        return data

    def _verify(self, path: Path, name: str, size: int, sha256: str) -> None:
        if not path.exists():
            raise self._missing(name)
        found = path.stat().st_size
        if found != size or hash_file(path) != sha256:
            raise self._changed(name, found, size)

    def _missing(self, name: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self._files.root}/{name} is missing; {REMEDY}")

    def _changed(self, name: str, found: int, promised: int) -> CorruptArtifactError:
        return CorruptArtifactError(
            f"{self._files.root}/{name} was changed after it was published: its sha256 is not that of the manifest "
            f"({found} bytes, {promised} promised); {REMEDY}"
        )


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, read by pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

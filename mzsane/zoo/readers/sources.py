"""Where checkpoints lie: folders, buckets and hubs, zip and tar archives, behind one small protocol.

What is wrong with one file is a ConfigError and sets that file aside; a source that cannot be reached is a StoreError
and stops the work, so that an outage never ends as a zoo with holes.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mzsane.errors import ConfigError, MzsaneError, StoreError
from mzsane.storage import Storage
from mzsane.zoo.readers.archives import TarSource, ZipSource, unpack_gzip

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_REMOTE_READS = 8
_ADVICE = "is the address right, is there a network, and does a private repository have its token (HF_TOKEN)?"


class Source(Protocol):
    """Files by name. Implementations are cheap to pickle: they open what they need in the process that reads."""

    @property
    def address(self) -> str:
        """Where the files are, for people."""

    @property
    def parallel_reads(self) -> int:
        """How many files are best read at once, in threads."""

    def names(self) -> list[str]:
        """Return the names of all files, relative, with `/`, sorted.

        Raises:
            ConfigError: there is no such source.
        """

    def refused(self) -> Mapping[str, str]:
        """Return the names of the files that are not safe to read, each with the reason."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            ConfigError: there is no such file, it is damaged, or it is larger than anything reasonable.
            StoreError: the source cannot be reached.
        """


class FolderSource:
    """A folder, bucket or hub repository.

    Args:
        address: a path or fsspec URL.
        max_file_bytes: larger files are not read.

    Raises:
        ConfigError: the address cannot be opened.
    """

    def __init__(self, address: str, max_file_bytes: int) -> None:
        self.address = address.rstrip("/") or address
        self.max_file_bytes = max_file_bytes
        self._storage = open_storage(address)
        self.parallel_reads = 1 if self._storage.local_path("") else _REMOTE_READS

    def names(self) -> list[str]:
        """Return the names of all files."""
        folder = self._storage.local_path("")
        if folder is not None:
            return _walk_local(folder, self.address)
        try:
            with self._reached("is not there"):
                names = self._storage.walk()
        except StoreError as error:
            raise ConfigError(str(error)) from None
        if not names:  # fsspec takes a folder that it cannot list for an empty one
            raise ConfigError(f"source {self.address} has no files, or cannot be reached: {_ADVICE}")
        return names

    def refused(self) -> Mapping[str, str]:
        """Return nothing: names of folders and buckets cannot lead out of them."""
        return {}

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        path = self._storage.local_path(name)
        if path is not None:
            return _read_local(path, self.max_file_bytes)
        with self._reached(f"has no file {name}"):
            size = self._storage.size(name)
            if size is None:
                raise FileNotFoundError
            check_size(size, self.max_file_bytes)
            return self._storage.read(name)

    @contextmanager
    def _reached(self, missing: str) -> Iterator[None]:
        """Turn the errors that the many kinds of remote storage raise into two."""
        try:
            yield
        except FileNotFoundError:
            raise ConfigError(f"source {self.address} {missing}") from None
        except MzsaneError:
            raise
        except Exception as error:  # every protocol has libraries and errors of its own
            text = " ".join(str(error).split())[:200]
            raise StoreError(
                f"source {self.address} cannot be reached ({type(error).__name__}: {text}): {_ADVICE}"
            ) from None


@contextmanager
def open_source(address: str, max_file_bytes: int) -> Iterator[Source]:
    """Open a source; a remote or compressed archive is put into a temporary folder for as long as it is open.

    Args:
        address: a folder, an fsspec URL, or a zip, tar or tar.gz file at either.
        max_file_bytes: larger files are not read.

    Raises:
        ConfigError: the address cannot be opened, or the archive is damaged or not safe to unpack.
        StoreError: it cannot be reached.
    """
    if not address.lower().endswith(_ARCHIVES):
        yield FolderSource(address, max_file_bytes)
        return
    folder, _, name = address.replace(os.sep, "/").rpartition("/")
    storage = open_storage(folder or ("/" if address.startswith("/") else "."))
    path = storage.local_path(name)
    with tempfile.TemporaryDirectory(prefix="mzsane-") as temporary:
        if path is None:
            path = Path(temporary, name)
            try:
                storage.download(name, path)
            except FileNotFoundError:
                raise ConfigError(f"there is no archive {address}") from None
        elif path.is_dir():
            yield FolderSource(address, max_file_bytes)
            return
        if name.lower().endswith(".zip"):
            yield ZipSource((str(path),), max_file_bytes, address)
            return
        if name.lower().endswith("gz"):
            path = unpack_gzip(path, Path(temporary, "unpacked.tar"), address)
        yield TarSource(str(path), max_file_bytes, address)


def open_storage(address: str) -> Storage:
    """Open the storage at an address of the user's, S3 at `MZSANE_S3_ENDPOINT` when that is set.

    Raises:
        ConfigError: the address cannot be opened.
    """
    return Storage(address, setting="source")


def check_size(size: int, limit: int) -> None:
    """Refuse a file that is too large to be a checkpoint.

    Raises:
        ConfigError: it is.
    """
    if size > limit:
        raise ConfigError(f"too large: {size} bytes, max_file_bytes is {limit}")


def _walk_local(folder: Path, address: str) -> list[str]:
    """List the files below a folder; several times faster than fsspec, and ten thousand checkpoints are usual."""
    if not folder.is_dir():
        raise ConfigError(f"source {address} is not a folder")
    root = str(folder)
    names = []
    for parent, _, files in os.walk(root):
        below = os.path.relpath(parent, root)
        prefix = "" if below == "." else f"{below.replace(os.sep, '/')}/"
        names += [prefix + file for file in files]
    return sorted(names)


def _read_local(path: Path, limit: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise ConfigError("not a regular file")
        check_size(status.st_size, limit)
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file") from None
    except PermissionError:
        raise ConfigError("no permission to read it") from None
    except OSError as error:
        raise StoreError(f"source file {path} cannot be read: {error}") from None

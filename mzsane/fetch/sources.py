"""Where checkpoints lie: folders, buckets and hubs, zip and tar archives, behind one small protocol.

What is wrong with one file is a ConfigError and sets that file aside; a source that cannot be reached is a StoreError
and stops the work, so that an outage never ends as a zoo with holes.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mzsane.addresses import check_openable, show_address, split_query
from mzsane.errors import ConfigError, MzsaneError, StoreError
from mzsane.fetch.archives import TarSource, ZipSource, explain_file, unpack_gzip
from mzsane.fetch.walking import walk_folder
from mzsane.store.storage import Storage

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_REMOTE_READS = 8
_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MZSANE_S3_ENDPOINT where the server is not Amazon's; a "
    "bucket that everybody may read needs FSSPEC_S3_ANON=true instead"
)
_ADVICE = {
    "s3": f"are bucket and prefix there, in the right case, and may they be read? For keys, {_KEYS}",
    "hf": "is the address right, is there a network, and does a private repository have its token (HF_TOKEN)?",
}


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
        self.address = show_address(address.rstrip("/") or address)
        self.max_file_bytes = max_file_bytes
        self._storage = open_storage(address)
        self._refused: dict[str, str] = {}
        self.parallel_reads = 1 if self._storage.local_path("") else _REMOTE_READS

    def names(self) -> list[str]:
        """Return the names of all files; of a source that is one file, that one's."""
        folder = self._storage.local_path("")
        if folder is not None and folder.is_file():
            return self._move_up()
        if folder is not None:
            found = walk_folder(folder, self.address)
            self._refused = found.refused
            return found.names
        try:
            with self._reached("is not there"):
                names = self._storage.walk()
        except StoreError as error:
            raise ConfigError(_add_advice(str(error), self.address)) from None
        if names == [""]:
            return self._move_up()
        if not names:  # fsspec takes a folder that it cannot list for an empty one
            raise ConfigError(f"source {self.address} has no files, or cannot be reached: {find_advice(self.address)}")
        return names

    def _move_up(self) -> list[str]:
        """Make this a source of one file, below the folder in which it lies.

        Raises:
            ConfigError: the file is an archive of a kind that is not read.
        """
        folder, _, name = self.address.rpartition("/")
        if advice := explain_file(name):
            raise ConfigError(f"source {self.address} cannot be read: {advice}")
        self.address = folder
        self._storage = open_storage(folder or "/")
        return [name]

    def refused(self) -> Mapping[str, str]:
        """Return what was found beside the files when they were listed: folders and names that cannot be used."""
        return self._refused

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
                f"source {self.address} cannot be reached ({type(error).__name__}: {text}): {find_advice(self.address)}"
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
    try:
        plain, query = split_query(check_openable(address))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not (plain.lower().endswith(ARCHIVES) or query):
        yield FolderSource(address, max_file_bytes)
        return
    folder, _, name = plain.replace(os.sep, "/").rpartition("/")
    storage = open_storage(folder or ("/" if address.startswith("/") else "."))
    path = storage.local_path(name)
    address = show_address(address)
    with tempfile.TemporaryDirectory(prefix="mzsane-") as temporary:
        if path is None:
            path = Path(temporary, "archive")
            try:
                storage.download(name + query, path)
            except FileNotFoundError:
                raise ConfigError(f"there is no archive {address}") from None
            if not name.lower().endswith(ARCHIVES):
                name = f"archive{_find_suffix(path, address)}"
        elif path.is_dir():
            yield FolderSource(address, max_file_bytes)
            return
        if name.lower().endswith(".zip"):
            yield ZipSource((str(path),), max_file_bytes, address)
            return
        if name.lower().endswith("gz"):
            path = unpack_gzip(path, Path(temporary, "unpacked.tar"), address)
        yield TarSource(str(path), max_file_bytes, address)


def _find_suffix(path: Path, address: str) -> str:
    """Return the suffix of an archive whose address does not end in one, by its first bytes.

    Raises:
        ConfigError: it is none.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        return ".zip"
    if start.startswith(b"\x1f\x8b"):
        return ".tar.gz"
    if start[257:262] == b"ustar":
        return ".tar"
    raise ConfigError(f"{address} is neither a zip nor a tar: a source is one, or a folder")


def open_storage(address: str) -> Storage:
    """Open the storage at an address of the user's, S3 at `MZSANE_S3_ENDPOINT` when that is set.

    Raises:
        ConfigError: the address cannot be opened.
    """
    if find_protocol(address) == "s3":  # no key begins with a slash, whatever people write
        protocol, _, rest = address.partition("://")
        bucket, slash, key = rest.partition("/")
        address = f"{protocol.lower()}://{bucket}{slash}{key.lstrip('/')}"
    return Storage(address, setting="source")


def find_advice(address: str) -> str:
    """Return what to look at when an address cannot be read."""
    protocol = find_protocol(address)
    return _ADVICE.get(protocol, "is the address right, and is there a network?")


def find_protocol(address: str) -> str:
    """Return the protocol of an address, `s3` for all names of it; empty for a path."""
    protocol = address.partition("://")[0].lower() if "://" in address else ""
    return "s3" if protocol == "s3a" else protocol


def _add_advice(text: str, address: str) -> str:
    missing = "locate credentials" in text or "Partial credentials" in text
    return f"source {address} needs keys, and there are none: {_KEYS}" if missing else text


def check_size(size: int, limit: int) -> None:
    """Refuse a file that is too large to be a checkpoint.

    Raises:
        ConfigError: it is.
    """
    if size > limit:
        raise ConfigError(f"too large: {size} bytes, max_file_bytes is {limit}")


def _read_local(path: Path, limit: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise ConfigError("not a regular file")
        check_size(status.st_size, limit)
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("a link whose target is not there" if path.is_symlink() else "no such file") from None
    except PermissionError:
        raise ConfigError("no permission to read it") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise ConfigError("a link that leads to itself" if error.errno == errno.ELOOP else "no such file") from None
        raise StoreError(f"source file {path} cannot be read: {error}") from None

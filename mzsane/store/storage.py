"""Files below one root, a local folder or any fsspec URL: atomic, and with errors that say what to do."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mzsane.addresses import show_address
from mzsane.errors import StoreError
from mzsane.store.cache import Cache
from mzsane.store.file_systems import NEEDS_KEYS, S3, PatientFileSystem, open_file_system
from mzsane.store.local_files import link_first, write_hidden

_WRITE_ATTEMPTS = 10
# In one request: by default s3fs asks for the size first and copies ranges of 50 MB together, twice.
_S3_READ_OPTIONS = {"max_concurrency": 1}
# What servers call a tag of the content, or else its time.
_STAMPS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
# Large files by pieces, few at a time: by default 500 MB are in memory.
_S3_PIECES = {"chunksize": 8 * 2**20, "max_concurrency": 2}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class StoredFile:
    """A file as a storage lists it, hidden or not: its name, its bytes, and when it was last written, in seconds."""

    name: str
    bytes: int
    changed: float


class Storage:
    """Files by name below one root; S3 is at `MZSANE_S3_ENDPOINT` when that is set.

    Args:
        root: a folder or URL such as `s3://bucket/prefix`.
        options: fsspec's storage options.
        setting: what the user set the address with, for error texts.
        cache: where files are made that go to a remote place.

    Raises:
        ConfigError: the address cannot be opened, or the endpoint has no scheme.
    """

    def __init__(
        self,
        root: str,
        options: Mapping[str, Any] | None = None,
        setting: str = "MZSANE_ROOT",
        cache: Cache | None = None,
    ) -> None:
        s3 = root.startswith(S3)
        self._read_options = _S3_READ_OPTIONS if s3 else {}
        self._piece_options = _S3_PIECES if s3 else {}
        self._cache = cache or Cache()
        self._fs, path = open_file_system(root, options or {}, setting)
        self._setting = setting
        self._root = path.rstrip("/")
        self._local = not isinstance(self._fs, PatientFileSystem)
        self.root = self._root if self._local else show_address(self._fs.unstrip_protocol(self._root))

    def exists(self, name: str) -> bool:
        """Tell whether a file is there."""
        with self._explained(name):
            return bool(self._fs.exists(self._path(name)))

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None when there is no such file."""
        with self._explained(name):
            try:
                return int(self._fs.size(self._path(name)))
            except FileNotFoundError:
                return None

    def local_path(self, name: str) -> Path | None:
        """Return the path of a file that lies on this machine; None when files are remote."""
        return Path(self._path(name)) if self._local else None

    def download(self, name: str, target: Path) -> None:
        """Copy a remote file to a local path. Raises FileNotFoundError when there is none."""
        with self._explained(name):
            try:
                self._fs.get_file(self._path(name), str(target), **self._piece_options)
            except OSError as error:
                if error.errno in _FULL:
                    raise StoreError(
                        f"no space left in the cache {target.parent}: free some or set MZSANE_CACHE to another place"
                    ) from None
                raise

    def list_names(self, folder: str) -> set[str]:
        """Return the names of the complete files in a folder; a folder that is not there is empty."""
        with self._explained(folder):
            try:
                paths = self._fs.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return set()
        names = {PurePosixPath(path).name for path in paths}
        return {name for name in names if not name.startswith(".")}

    def walk(self) -> list[str]:
        """Return the names of all files below the root, sorted; an empty list when there is no such folder.

        When the root is itself a file, its name is empty.
        """
        with self._explained(""):
            try:
                # fsspec leaves out local folders that cannot be listed, unless told otherwise.
                paths = self._fs.find(self._root, **({"on_error": "raise"} if self._local else {}))
            except FileNotFoundError:
                return []
        return sorted(path[len(self._root) + 1 :] for path in paths)  # as they are: keys may have empty parts

    def list_stamps(self) -> dict[str, tuple[int, str]]:
        """Return the size of each file below a remote root, and its tag or, where the server has none, its time."""
        with self._explained(""):
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        stamps = {}
        for path, info in found.items():
            tag = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
            stamps[path[len(self._root) + 1 :]] = (int(info.get("size") or 0), tag)
        return stamps

    def list_files(self) -> list[StoredFile]:
        """Return all files below the root, hidden ones too, sorted by name; those that go while we look are left out.

        A file whose age the storage does not tell counts as new.
        """
        with self._explained(""):
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return []
        files = []
        for path, info in found.items():
            changed = info.get("mtime", info.get("LastModified"))
            seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed
            name = str(PurePosixPath(path).relative_to(self._root))
            files.append(StoredFile(name, info["size"] or 0, time.time() if seconds is None else float(seconds)))
        return sorted(files, key=lambda file: file.name)

    def list_uploads(self) -> list[StoredFile]:
        """Return the uploads by pieces on S3 that were begun below the root and not ended; nobody sees their bytes."""
        return [StoredFile(name, 0, begun.timestamp()) for name, begun, _ in self._find_uploads()]

    def abort_upload(self, name: str) -> None:
        """Give up an upload by pieces, all of that name."""
        with self._explained(name):
            for found, _, number in self._find_uploads():
                if found == name:
                    bucket, _, key = self._path(name).partition("/")
                    self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=number)

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError when there is none."""
        with self._explained(name):
            if self._local:
                return Path(self._path(name)).read_bytes()
            return bytes(self._fs.cat_file(self._path(name), **self._read_options))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; a reader sees the old bytes or the new ones."""
        with self._explained(name, writing=True):
            if not self._local:
                self._fs.pipe_file(self._path(name), data)
                return
            for attempt in range(1, _WRITE_ATTEMPTS + 1):
                try:
                    write_hidden(Path(self._path(name)), data).replace(self._path(name))
                    return
                except (FileNotFoundError, FileExistsError):  # another run has just removed the folder
                    if attempt == _WRITE_ATTEMPTS:
                        raise

    @contextmanager
    def stage(self, folder: str) -> Iterator[Path]:
        """Yield the local path of a file to be made, for `place`; what is there at the end of the block is removed."""
        if not self._local:
            with self._cache.scratch() as path:
                yield path
            return
        target = Path(self._path(folder))
        with self._explained(folder, writing=True):
            target.mkdir(parents=True, exist_ok=True)
        path = target / f".stage.{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def place(self, path: Path, name: str) -> None:
        """Write or replace a file by one that was staged: moved, or sent by pieces."""
        with self._explained(name, writing=True):
            if not self._local:
                self._fs.put_file(str(path), self._path(name), **self._piece_options)
                return
            target = Path(self._path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Yield the local path of a copy of a file, for as long as the block runs.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.stage(str(PurePosixPath(name).parent)) as copy:
            if self._local:
                with self._explained(name):
                    shutil.copyfile(self._path(name), copy)
            else:
                self.download(name, copy)
            yield copy

    def create(self, name: str, data: bytes) -> bool:
        """Create a file if there is none, in one step; tell whether it was created.

        On a server a file of the very same bytes counts as ours: the answer to an earlier attempt may have been lost.
        So what several may want to create, and only one may get, names its writer.
        """
        with self._explained(name, writing=True):
            if self._local:
                fresh = write_hidden(Path(self._path(name)), data)
                try:
                    return link_first(fresh, Path(self._path(name)))
                finally:
                    fresh.unlink(missing_ok=True)
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except (FileExistsError, OSError) as error:
                # Servers word a failed precondition in their own ways; that the file is there is what counts.
                if self._fs.exists(self._path(name)):
                    return bool(self._fs.cat_file(self._path(name), **self._read_options) == data)
                raise error
            return True

    def remove(self, name: str) -> None:
        """Remove a file or folder; one that is gone already is fine."""
        with self._explained(name), suppress(FileNotFoundError):
            if self._local and Path(self._path(name)).is_dir():
                # Renamed first: a folder that another run still writes to cannot be removed in place.
                gone = Path(self._path(name)).rename(f"{self._path(name)}.{uuid.uuid4().hex}")
                shutil.rmtree(gone, ignore_errors=True)
            else:
                self._fs.rm(self._path(name), recursive=True)

    def remove_empty(self, names: Sequence[str]) -> None:
        """Remove the folders that held files which are gone, where nothing else is in them; object stores have none."""
        for name in names if self._local else ():
            for folder in PurePosixPath(name).parents[:-1]:
                with suppress(OSError):
                    Path(self._path(str(folder))).rmdir()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _find_uploads(self) -> list[tuple[str, Any, str]]:
        """Return name, begin and number of the uploads that are not ended; other storages than S3 know none."""
        if not self._root or not hasattr(self._fs, "list_multipart_uploads"):
            return []
        bucket, _, prefix = self._root.partition("/")
        with self._explained(""):
            found = self._fs.list_multipart_uploads(bucket)
        return [
            (each["Key"].removeprefix(f"{prefix}/" if prefix else ""), each["Initiated"], each["UploadId"])
            for each in found
            if not prefix or each["Key"].startswith(f"{prefix}/")
        ]

    @contextmanager
    def _explained(self, name: str, writing: bool = False) -> Iterator[None]:
        """Turn the many errors of file systems and servers into a StoreError that says what to do."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            if not writing:
                raise
            missing = f"the bucket of {self.root} does not exist: create it, or set {self._setting}"
            raise (self._failed(name, error) if self._local else StoreError(missing)) from None
        except PermissionError as error:
            advice = (
                f"the folder cannot be written: set {self._setting} to one that can"
                if self._local
                else "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket"
            )
            raise StoreError(f"the store {self.root} refused access to {name} ({error}); {advice}") from None
        except OSError as error:
            if error.errno in _FULL:
                raise StoreError(
                    f"no space left in the store {self.root} while writing {name}: free some or set {self._setting} to "
                    "another place; the same command then continues where this one stopped"
                ) from None
            raise self._failed(name, error) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
                raise
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise StoreError(f"the store {self.root} cannot be opened: {NEEDS_KEYS}") from None
            raise self._failed(name, error) from None

    def _failed(self, name: str, error: Exception) -> StoreError:
        advice = f"is it running, and are {self._setting} and MZSANE_S3_ENDPOINT right?"
        if self._local:
            advice = f"is {self._setting} the folder you meant?"
        return StoreError(f"the store {self.root} failed{f' at {name}' if name else ''}: {error}; {advice}")

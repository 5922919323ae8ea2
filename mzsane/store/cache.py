"""The folder on this machine for copies of remote files and for files being made: private, and never too large.

Copies are named by their sha256 and verified whenever they are used. The least recently used ones go when all together
take more than `MZSANE_CACHE_GIB`; files that a killed process was writing go after a day.
"""

import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from mzsane.errors import ConfigError, StoreError

TEMPORARY = "mzsane-"  # what the names of all temporary folders begin with
_GIB = 20.0
_IN_USE_SECONDS = 3600.0  # a copy may be opened this long after it was found
_SCRATCH = "unfinished-"
_SCRATCH_SECONDS = 24 * 3600.0


def default_cache() -> Path:
    """Return the folder of copies and unpacked data where `MZSANE_CACHE` names none; only its user can look into it.

    Raises:
        StoreError: it is another user's, or cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"mzsane-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Anybody may make a folder of this name in a shared place before us.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StoreError(f"{folder} belongs to another user: set MZSANE_CACHE to a folder of your own")
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error}): set MZSANE_CACHE to a folder of your own") from None
    return folder


class Cache:
    """Files by name in one folder.

    Args:
        folder: the folder; `MZSANE_CACHE`, or `default_cache` when there is none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder

    @cached_property
    def folder(self) -> Path:
        """The folder, made when it is first needed.

        Raises:
            StoreError: it cannot be made.
        """
        folder = self._place()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the cache {folder} cannot be made ({error}): set MZSANE_CACHE to another place"
            ) from None
        return folder

    def _place(self) -> Path:
        named = os.environ.get("MZSANE_CACHE")
        return self._given or (Path(named) if named else default_cache())

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield the path of a file to be written; what is there at the end of the block is removed."""
        path = self.folder / f"{_SCRATCH}{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def touch(self, path: Path) -> None:
        """Note that a copy is used now."""
        with suppress(OSError):  # removed by another process: its user notices when it opens it
            os.utime(path)

    def trim(self) -> None:
        """Remove what `find_garbage` finds."""
        for path, _, _ in self.find_garbage():
            path.unlink(missing_ok=True)

    def find_garbage(self, scratch_seconds: float = _SCRATCH_SECONDS) -> list[tuple[Path, int, str]]:
        """Return files that need not be kept, each with its bytes and the reason.

        Args:
            scratch_seconds: a file that was being written, and not since, is left of a run that was killed.

        Raises:
            ConfigError: `MZSANE_CACHE_GIB` is not a number.
        """
        limit, now = _read_limit(), time.time()
        if not self._place().is_dir():
            return []
        garbage, copies = [], []
        for path, found in _list_files(self.folder):
            if not path.name.startswith(_SCRATCH):
                copies.append((found.st_mtime, path, found.st_size))
            elif now - found.st_mtime >= scratch_seconds:
                garbage.append((path, found.st_size, "a file that a killed run was writing"))
        total = sum(size for _, _, size in copies)
        for used, path, size in sorted(copies):
            if total <= limit or now - used < _IN_USE_SECONDS:
                break
            total -= size
            garbage.append((path, size, f"a copy not used lately, of more than {limit / 2**30:g} GiB of copies"))
        return garbage


def find_temporary(older_seconds: float) -> list[tuple[Path, int, str]]:
    """Return this user's temporary folders of killed runs, each with its bytes and the reason.

    Args:
        older_seconds: folders in which anything has changed since are not listed: a run may use them.
    """
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):
            own = folder.lstat()
            if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.getuid() or folder.name.startswith("mzsane-cache-"):
                continue
            files = [path.lstat() for path in folder.rglob("*")]
            if time.time() - max(each.st_mtime for each in (own, *files)) >= older_seconds:
                size = sum(each.st_size for each in files if stat.S_ISREG(each.st_mode))
                found.append((folder, size, "the temporary folder of a killed run"))
    return found


def remove_local(path: Path) -> None:
    """Remove a file or folder; one that is gone already is fine."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _list_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield path, found


def _read_limit() -> float:
    given = os.environ.get("MZSANE_CACHE_GIB") or str(_GIB)
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ConfigError(f"MZSANE_CACHE_GIB={given!r}: must be a number of GiB, 0 or more")
    return limit * 2**30

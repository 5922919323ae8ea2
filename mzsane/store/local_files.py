"""Files of this machine's file systems: written whole, and named by whoever is first."""

import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV)
_STALE_SECONDS = 60.0  # of a marker that is held for the time of a rename


def write_hidden(target: Path, data: bytes) -> Path:
    """Write a file beside a target, under a hidden name of its own, to the disk; return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return fresh


def link_first(fresh: Path, target: Path) -> bool:
    """Give a file its name if nothing has it, in one step; tell whether it has it now."""
    try:
        os.link(fresh, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_first(fresh, target)
    return True


def _rename_first(fresh: Path, target: Path) -> bool:
    """Do the same where there are no hard links: whoever makes the marker may look and rename.

    A marker is held for a moment; one that is older was left by a process that was killed.
    """
    marker = target.with_name(f".{target.name}.first")
    while True:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if target.exists():
                return False
            with suppress(FileNotFoundError):
                if time.time() - marker.stat().st_mtime > _STALE_SECONDS:
                    marker.unlink()
            time.sleep(0.01)
    try:
        if target.exists():
            return False
        fresh.rename(target)
        return True
    finally:
        marker.unlink(missing_ok=True)

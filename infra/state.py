"""The state folder of the stack: what was started, logs, private files, and the lock of `up` and `down`."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from infra import processes
from infra.processes import Identity
from infra.settings import StackError


@dataclass(frozen=True)
class Record:
    """What the state folder remembers of a service, in `NAME.json`.

    Attributes:
        pid: process id; None for a service that somebody else runs.
        start: start time of the process in clock ticks since boot.
        launched: start time in seconds since 1970.
        address: where it was put.
        probe: address of its health check.
        fingerprint: digest of the settings it was started with.
    """

    pid: int | None
    start: int | None
    launched: float
    address: str
    probe: str
    fingerprint: str

    @property
    def identity(self) -> Identity | None:
        """The process, or None for a service that somebody else runs."""
        return None if self.pid is None else Identity(self.pid, self.start)

    @property
    def is_alive(self) -> bool:
        """Whether the process lives; always true for a service that somebody else runs."""
        return self.identity is None or processes.is_alive(self.identity)


@contextmanager
def lock(home: Path) -> Iterator[None]:
    """Make the state folder where it is missing, and keep a second `up` or `down` out of it.

    Raises:
        StackError: another one is at work.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("logs", "prefect"):
        (home / name).mkdir(exist_ok=True)
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"another up or down is at work in {home}") from None
        yield


def read_record(home: Path, name: str) -> Record | None:
    """Return the record of a service, or None when it was never started or was stopped."""
    try:
        return Record(**json.loads(_locate_record(home, name).read_text()))
    except FileNotFoundError:
        return None


def write_record(home: Path, name: str, record: Record) -> None:
    """Remember a service that was started."""
    write_private(_locate_record(home, name), json.dumps(asdict(record), indent=2) + "\n")


def remove_record(home: Path, name: str) -> None:
    """Forget a service that was stopped."""
    _locate_record(home, name).unlink(missing_ok=True)


def locate_log(home: Path, name: str) -> Path:
    """Return the log file of a service or a job."""
    return home / "logs" / f"{name}.log"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one piece."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _locate_record(home: Path, name: str) -> Path:
    return home / f"{name}.json"

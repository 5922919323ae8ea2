"""Detached processes of this machine: start them, recognise them later, end them with all their children.

Every process carries a marker in its environment, which its children inherit; so the whole family is found even when
a parent is gone or a child has moved to a session of its own. Linux only: it reads `/proc`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from infra.settings import StackError

MARKER = "MZSANE_STACK_PROCESS"
PROC = Path("/proc")


class Identity(NamedTuple):
    """A process that cannot be mistaken for a later one with the same pid.

    Attributes:
        pid: process id.
        start: start time in clock ticks since boot.
    """

    pid: int
    start: int


class _Entry(NamedTuple):
    identity: Identity
    parent: int
    session: int


def launch(
    command: Sequence[str], marker: str, environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen:
    """Start a process in a session of its own, its output appended to a log file.

    Args:
        command: program and arguments.
        marker: what `find_members` and `terminate` will know the process and its children by.
        environment: the whole environment of the process; the marker is added.
        folder: working directory.
        log: file for stdout and stderr.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            # A process reads its folder's name from PWD: `prefect.yaml` does.
            env={**environment, "PWD": str(folder), MARKER: marker},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Collects the exit status as soon as there is one, so that no zombie stays while this program goes on.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def identify(pid: int) -> Identity | None:
    """Return the identity of a running process, or None when there is no such process or it has ended."""
    entry = _read_entry(pid)
    return entry.identity if entry else None


def is_alive(identity: Identity) -> bool:
    """Tell whether this very process still runs; a later process with the same pid does not count."""
    return identify(identity.pid) == identity


def find_members(marker: str, known: Iterable[Identity] = ()) -> set[Identity]:
    """Find the processes of a family: marked ones, their sessions, and all descendants.

    Args:
        marker: a marker given to `launch`; markers that continue it after a colon match too.
        known: processes that belong to the family whatever their environment shows.
    """
    entries = [entry for path in PROC.glob("[0-9]*") if (entry := _read_entry(int(path.name)))]
    known = set(known)
    members = {entry for entry in entries if entry.identity in known or _carries(entry.identity.pid, marker)}
    while True:
        pids = {entry.identity.pid for entry in members}
        sessions = {entry.session for entry in members}
        grown = {entry for entry in entries if entry in members or entry.parent in pids or entry.session in sessions}
        if len(grown) == len(members):
            return {entry.identity for entry in members if entry.identity.pid != os.getpid()}
        members = grown


def terminate(marker: str, known: Iterable[Identity] = (), grace: float = 10.0) -> None:
    """End a family of processes: ask with SIGTERM, kill what is left after the grace time.

    Args:
        marker: the family's marker.
        known: processes that belong to the family whatever their environment shows.
        grace: seconds between the question and the kill.

    Raises:
        StackError: a process outlived SIGKILL by five seconds.
    """
    members = find_members(marker, known)
    for patience, number in ((grace, signal.SIGTERM), (5.0, signal.SIGKILL)):
        deadline = time.monotonic() + patience
        asked: set[Identity] = set()
        while members and time.monotonic() < deadline:
            for member in members - asked:
                _send(member, number)
            asked |= members
            time.sleep(0.1)
            # What a member started in the meantime is a member too.
            members = find_members(marker, members)
    if members:
        raise StackError(f"processes {sorted(member.pid for member in members)} of {marker} do not end")


def _send(identity: Identity, number: int) -> None:
    if is_alive(identity):
        with suppress(ProcessLookupError):
            os.kill(identity.pid, number)


def _carries(pid: int, marker: str) -> bool:
    try:
        variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    entry = f"{MARKER}={marker}".encode()
    return any(variable == entry or variable.startswith(entry + b":") for variable in variables)


def _read_entry(pid: int) -> _Entry | None:
    """Read `/proc/PID/stat` (proc(5)); None for a process that is gone or a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name before the last parenthesis may hold spaces.
    state, parent, _, session, *rest = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return _Entry(Identity(pid, int(rest[15])), int(parent), int(session))

"""How an artifact was made: when, for how long, where and by which code. It tells people, and names no work."""

import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from mzsane.store.manifest import Making


@dataclass(frozen=True)
class _Stage:
    started: float
    name: str | None = None
    threads: int | None = None


_stage: ContextVar[_Stage | None] = ContextVar("stage", default=None)


@contextmanager
def record_making(name: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Note that a stage begins, for the manifest of what it publishes; within another one, add to what is noted.

    Args:
        name: what people call the work.
        threads: that it has.
    """
    outer = _stage.get()
    inner = _Stage(time.time(), name, threads)
    if outer is not None:
        inner = replace(outer, name=outer.name or name, threads=threads or outer.threads)
    token = _stage.set(inner)
    try:
        yield
    finally:
        _stage.reset(token)


def describe_making() -> Making:
    """Return how the artifact that is published now was made."""
    stage, now = _stage.get(), time.time()
    return Making(
        name=None if stage is None else stage.name,
        ended=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        seconds=None if stage is None else round(now - stage.started, 6),
        threads=None if stage is None else stage.threads,
        commit=find_commit(),
        host=platform.node(),
    )


@lru_cache(maxsize=1)
def find_commit() -> str | None:
    """Return the commit of the checkout that this code is in; None where it was installed without one."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None

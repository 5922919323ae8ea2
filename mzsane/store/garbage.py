"""What killed runs have left in a store and on this machine: found, and removed when that is asked for.

All files of one artifact, unfinished ones too, are one piece of work. A piece in which a file was written not long ago
may still be worked on, and is left alone whole. Unfinished work that a next run would continue is kept, whatever its
age: its partial files, and the data files that it has uploaded before its artifact is out.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mzsane.errors import CorruptArtifactError, NewerArtifactError
from mzsane.store import cache
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.store.manifest import MANIFEST
from mzsane.store.partial import FOLDER
from mzsane.store.storage import StoredFile

AGE_HOURS = 24.0
# What lies at a root that the store shares with others' files is told by the names that only we give.
_OURS = re.compile(
    rf"(?:{FOLDER}/)?(?P<work>\w+/[0-9a-f]{{64}})(?:\.[0-9a-f]{{32}})?/[^/]+|{FOLDER}/\.?probe-[0-9a-f]{{32}}(?:\.[0-9a-f]{{32}})?"
)


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing needs any more.

    Attributes:
        name: below the root of the store, or a path of this machine.
        bytes: how large it is.
        reason: why it is not needed.
        place: `store`; `upload`, one by pieces that was not ended; or `machine`.
    """

    name: str
    bytes: int
    reason: str
    place: str = "store"


def collect_garbage(store: ArtifactStore, delete: bool = False, age_hours: float = AGE_HOURS) -> list[Garbage]:
    """List what killed runs have left, and remove it if asked to.

    Args:
        store: where to look, with its cache and this user's temporary folders.
        delete: remove what is listed; without, nothing is touched.
        age_hours: work in which something was written since is not touched, because it may be running.

    Returns:
        What is to go, or has gone.

    Raises:
        StoreError: the store cannot be reached, or refuses.
    """
    seconds = age_hours * 3600
    garbage = [*_find_stored(store, seconds)]
    local = [*store.cache.find_garbage(seconds), *cache.find_temporary(seconds)]
    garbage += [Garbage(str(path), size, reason, "machine") for path, size, reason in local]
    for each in garbage if delete else ():
        if each.place == "machine":
            cache.remove_local(Path(each.name))
        elif each.place == "upload":
            store.files.abort_upload(each.name)
        else:
            store.files.remove(each.name)
    if delete:
        store.files.remove_empty([each.name for each in garbage if each.place == "store"])
    return garbage


def _find_stored(store: ArtifactStore, seconds: float) -> Iterator[Garbage]:
    works: dict[str, list[StoredFile]] = {}
    for file in store.files.list_files():
        if work := _name_work(file.name):
            works.setdefault(work, []).append(file)
    now = time.time()
    for work, members in sorted(works.items()):
        if now - max(file.changed for file in members) >= seconds:
            yield from _judge(store, work, members)
    for upload in store.files.list_uploads():
        if now - upload.changed >= seconds:
            yield Garbage(upload.name, 0, "an upload by pieces that was not ended", "upload")


def _name_work(name: str) -> str | None:
    """Return the piece of work that a file belongs to, `kind/fingerprint`; None for a file that is none of ours."""
    found = _OURS.fullmatch(name)
    return found and (found["work"] or name)


def _judge(store: ArtifactStore, work: str, members: Sequence[StoredFile]) -> Iterator[Garbage]:
    """Yield the files of a piece of work that nothing needs."""
    names = {file.name for file in members}
    published = f"{work}/{MANIFEST}" in names
    named = {f"{work}/{MANIFEST}"}
    if published:
        try:
            manifest = store.open(ArtifactRef.parse(work)).manifest
        except (CorruptArtifactError, NewerArtifactError):  # damaged, or of a newer version: not ours to judge
            return
        named |= {f"{work}/{entry.path}" for entry in manifest.files.values()}
    unfinished = f"{FOLDER}/{work}/"
    resumable = any(name.startswith(unfinished) and not _is_hidden(name) for name in names)
    for file in members:
        if file.name in named:
            continue
        if _is_hidden(file.name):
            yield Garbage(file.name, file.bytes, "a temporary file that a killed run was writing")
        elif file.name.startswith(unfinished):
            if published:
                yield Garbage(file.name, file.bytes, "an unfinished file of an artifact that is out")
        elif file.name.startswith(f"{FOLDER}/"):
            yield Garbage(file.name, file.bytes, "left of what a killed run was removing")
        elif published:
            yield Garbage(file.name, file.bytes, "a data file that the artifact's manifest does not name")
        elif not resumable:
            yield Garbage(file.name, file.bytes, "a data file of an artifact that was never published")


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")

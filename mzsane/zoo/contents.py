"""What a source holds, as a digest of names, sizes and times: what is named by an address is known by its content too.

A zoo keeps the digest of what it was read from. When it is asked for again and its source is there, and is another,
that is an error: the zoo of an address and revision never changes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError, MzsaneError
from mzsane.fetch.sources import open_storage
from mzsane.fetch.walking import walk_folder
from mzsane.store.artifacts import Artifact
from mzsane.zoo.formats.listing import is_litter

CONTENT = "source.json"  # the file of a zoo
_ARTIFACT = re.compile(r"(^|/)[0-9a-f]{64}/")  # of a store that lies in the source
_Stamps = Mapping[str, tuple[int, str]]


class Content(BaseModel):
    """What a source held: how many files, how many bytes, and a digest of their names, sizes and times or tags."""

    files: int
    bytes: int
    digest: str


def find_content(config: ReadConfig) -> Content | None:
    """Return what a source holds now; None when that cannot be told: a download, or a source out of reach."""
    if config.source is None:
        return None
    try:
        stamps = dict(_list_stamps(config.source))
        if not stamps:  # it is gone
            return None
        if config.metadata is not None and config.metadata not in stamps:
            stamps |= {f"metadata/{name}": stamp for name, stamp in _list_stamps(config.metadata).items()}
    except (MzsaneError, OSError):
        return None
    kept = {name: stamp for name, stamp in stamps.items() if not (is_litter(name) or _ARTIFACT.search(name))}
    text = json.dumps(sorted(kept.items()))
    return Content(
        files=len(kept),
        bytes=sum(size for size, _ in kept.values()),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def check_content(config: ReadConfig, zoo: Artifact) -> None:
    """Check that a zoo which was read before is still what its source holds; a source out of reach is not asked.

    Raises:
        ConfigError: the source has changed since.
    """
    if CONTENT not in zoo.manifest.files:
        return
    before, now = Content.model_validate_json(zoo.read(CONTENT)), find_content(config)
    if now is None or now == before:
        return
    difference = f"it had {before.files} files of {before.bytes:,} bytes and has {now.files} of {now.bytes:,}"
    if (now.files, now.bytes) == (before.files, before.bytes):
        difference = "its files have other names, or were written again"
    raise ConfigError(
        f"the source {config.origin} has changed since zoo {config.name} was read from it: {difference}; set revision, "
        "to any label, to read it as it is now"
    )


def _list_stamps(address: str) -> _Stamps:
    """Return size and time, or tag, of each file below an address, or of the one at it."""
    storage = open_storage(address)
    path = storage.local_path("")
    if path is None:
        return storage.list_stamps()
    if path.is_dir():
        return {name: _stamp(path / name) for name in walk_folder(path, address).names}
    return {path.name: _stamp(path)} if path.exists() else {}


def _stamp(path: Path) -> tuple[int, str]:
    try:
        status = path.stat()
    except OSError:  # a link without an end, or gone since
        return 0, "none"
    return status.st_size, str(status.st_mtime_ns)

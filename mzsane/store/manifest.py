"""The manifest of a published artifact: what it is, where it came from, and which files it has."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mzsane.errors import CorruptArtifactError, NewerArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
REMEDY = "remove the artifact's folder and rerun: it is made again from its inputs"


class FileEntry(BaseModel):
    """One data file in a manifest: its stored name, size in bytes, and sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    bytes: int
    sha256: str


class Making(BaseModel):
    """How an artifact was made; the seconds are those of the run that ended it, without those before a kill."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None
    ended: str
    seconds: float | None
    threads: int | None
    commit: str | None
    host: str


class Manifest(BaseModel):
    """What a published artifact is and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int
    kind: str
    fingerprint: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    counts: dict[str, Any]
    libraries: dict[str, str]
    made: Making | None = None
    files: dict[str, FileEntry]


def read_manifest(data: bytes, address: str) -> Manifest:
    """Read a manifest; its version is looked at first, as what a newer one holds is not known here.

    Raises:
        CorruptArtifactError: it is none.
        NewerArtifactError: a newer mzsane wrote it: it has a higher version, or fields of its own.
    """
    damaged = CorruptArtifactError(f"{address}/{MANIFEST} is not a manifest; {REMEDY}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise damaged from None
    if not (isinstance(content, dict) and "schema_version" in content):
        raise damaged
    version = content["schema_version"]
    if version != SCHEMA_VERSION:
        raise NewerArtifactError(
            f"{address} has manifest schema {version!r}, this mzsane reads {SCHEMA_VERSION}: nothing is wrong with it; "
            "use the version that wrote it, or another MZSANE_ROOT"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        unknown = [".".join(map(str, item["loc"])) for item in error.errors() if item["type"] == "extra_forbidden"]
        if not unknown:
            raise damaged from None
        raise NewerArtifactError(
            f"{address}/{MANIFEST} has fields that this mzsane does not know ({', '.join(unknown)[:200]}): a newer one "
            "wrote it; update mzsane, or use another MZSANE_ROOT"
        ) from None

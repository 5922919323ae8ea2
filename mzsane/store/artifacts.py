"""The artifact store: fingerprint, manifest, atomic publish, verified open.

An artifact is a folder `<root>/<kind>/<fingerprint>/` of data files and a `manifest.json` that is written last and
only if there is none yet. It exists if and only if its manifest does, and never changes afterwards. The stored name
of a data file carries the start of its hash, so that two writers of one artifact cannot overwrite each other's files:
the first manifest wins, and the second writer removes what the winner does not name.

Work in progress (chunks, training checkpoints) lives in `<root>/partial/<kind>/<fingerprint>/` until its artifact is
out.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mzsane.errors import CorruptArtifactError
from mzsane.store.cache import Cache
from mzsane.store.making import describe_making
from mzsane.store.manifest import MANIFEST, REMEDY, SCHEMA_VERSION, Manifest, read_manifest
from mzsane.store.manifest import FileEntry as FileEntry
from mzsane.store.partial import FOLDER, Partial
from mzsane.store.storage import Storage
from mzsane.store.verified import VerifiedFiles, hash_file

_KEPT_MANIFESTS = 8
_LIBRARIES = ("mzsane", "torch", "numpy", "polars", "pyarrow", "safetensors", "scikit-learn", "matplotlib", "pillow")


class ArtifactRef(BaseModel):
    """The name of an artifact: small, and the only thing about it that crosses a task border."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> "ArtifactRef":
        """Read what `str` gives, as the inputs of a manifest are written."""
        kind, _, fingerprint = text.partition("/")
        return cls(kind=kind, fingerprint=fingerprint)


@dataclass(frozen=True)
class Work:
    """A piece of work that leads to one artifact, known before it is done.

    Attributes:
        kind: what is made: zoo, tokens, backbone, ...
        version: the stage's `VERSION`.
        config: every setting that shapes the result, as JSON data.
        inputs: the artifacts that are read, by role.
        seed: the root seed, for the manifest; it must be in `config` too.
    """

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    seed: int = 0

    @cached_property
    def ref(self) -> ArtifactRef:
        """The artifact's name: sha256 of kind, version, config and input fingerprints in canonical JSON."""
        identity = {
            "kind": self.kind,
            "version": self.version,
            "config": self.config,
            "inputs": {role: str(ref) for role, ref in self.inputs.items()},
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return ArtifactRef(kind=self.kind, fingerprint=hashlib.sha256(text.encode()).hexdigest())


class Artifact:
    """A published artifact. Files are verified against the manifest when they are read.

    It crosses to another process by its name, and is opened there once: a manifest may name thousands of files.
    """

    def __init__(self, store: "ArtifactStore", manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.ref = ArtifactRef(kind=manifest.kind, fingerprint=manifest.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.store, self.ref)

    @property
    def address(self) -> str:
        """The artifact's URL."""
        return self.store.address(self.ref)

    def path(self, name: str) -> Path:
        """Return a local path of a data file whose bytes have been verified; a remote file is cached first.

        Raises:
            CorruptArtifactError: the file is missing or its bytes are not those of the manifest.
        """
        entry = self._find(name)
        return self.store.verified.fetch(f"{self.ref}/{entry.path}", entry.bytes, entry.sha256)

    def read(self, name: str) -> bytes:
        """Return the verified bytes of a data file; a remote one is not cached, so that any number can be read.

        Raises:
            CorruptArtifactError: the file is missing or its bytes are not those of the manifest.
        """
        entry = self._find(name)
        return self.store.verified.read(f"{self.ref}/{entry.path}", entry.bytes, entry.sha256)

    def _find(self, name: str) -> FileEntry:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise CorruptArtifactError(f"{self.address} has no file {name}; it has {', '.join(self.manifest.files)}")
        return entry


class ArtifactStore:
    """Artifacts below one root, a local folder or any fsspec URL; S3 is at `MZSANE_S3_ENDPOINT` when that is set.

    Args:
        root: a folder or URL such as `s3://bucket/prefix`.
        cache: local folder for verified copies of remote files; `MZSANE_CACHE`, or one of this user's, when None.
        options: fsspec's storage options.
    """

    def __init__(self, root: str, cache: Path | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.cache = Cache(cache)
        self.files = Storage(root, options, cache=self.cache)
        self.root = self.files.root
        self.verified = VerifiedFiles(self.files, self.cache)

    @classmethod
    def from_environment(cls) -> "ArtifactStore":
        """Open the store at `MZSANE_ROOT` (default `.mzsane/store`)."""
        return cls(os.environ.get("MZSANE_ROOT") or ".mzsane/store")

    def address(self, ref: ArtifactRef) -> str:
        """Return the URL of an artifact's folder, published or not."""
        return f"{self.root}/{ref}"

    def check(self) -> None:
        """Write and remove a small file, so that a store that cannot work is noticed before the work.

        Raises:
            StoreError: it cannot be reached, refuses, or is full.
        """
        probe = f"{FOLDER}/probe-{uuid.uuid4().hex}"
        self.files.write(probe, b"mzsane")
        self.files.remove(probe)

    def exists(self, ref: ArtifactRef) -> bool:
        """Tell whether an artifact is published."""
        return self.files.exists(f"{ref}/{MANIFEST}")

    def find(self, ref: ArtifactRef) -> Artifact | None:
        """Open an artifact, or return None when it is not published."""
        return self.open(ref) if self.exists(ref) else None

    def open(self, ref: ArtifactRef) -> Artifact:
        """Open a published artifact.

        Raises:
            CorruptArtifactError: there is no manifest, or it is not one of this artifact.
            NewerArtifactError: a newer mzsane wrote it.
        """
        try:
            manifest = read_manifest(self.files.read(f"{ref}/{MANIFEST}"), self.address(ref))
        except FileNotFoundError:
            raise CorruptArtifactError(f"{self.address(ref)} is not there (no {MANIFEST})") from None
        if (manifest.kind, manifest.fingerprint) != (ref.kind, ref.fingerprint):
            raise CorruptArtifactError(f"{self.address(ref)}/{MANIFEST} belongs to another artifact; {REMEDY}")
        return Artifact(self, manifest)

    def partial(self, work: Work) -> Partial:
        """Return the place for the unfinished files of a piece of work."""
        return Partial(self.files, str(work.ref))

    def upload(self, work: Work, name: str, content: Path | bytes | Callable[[Path], None]) -> FileEntry:
        """Put a data file where it belongs before the artifact is published; nobody sees it until then.

        For artifacts too large to be held at once: keep the entry in the work's partial files, and publish it.

        Args:
            work: what the file belongs to.
            name: of the file, such as `index.parquet`.
            content: a local file, bytes, or a function that writes them to a path, for files of any size.
        """
        if isinstance(content, bytes):
            entry = _make_entry(name, len(content), hashlib.sha256(content).hexdigest())
            self.files.write(f"{work.ref}/{entry.path}", content)
            return entry
        with self.files.stage(str(work.ref)) as staged:
            if isinstance(content, Path):
                shutil.copyfile(content, staged)
            else:
                content(staged)
            entry = _make_entry(name, staged.stat().st_size, hash_file(staged))
            self.files.place(staged, f"{work.ref}/{entry.path}")
        return entry

    def publish(
        self,
        work: Work,
        files: Mapping[str, Path | bytes | Callable[[Path], None] | FileEntry],
        counts: Mapping[str, Any],
    ) -> Artifact:
        """Publish an artifact: data files first, the manifest last, then the unfinished files go.

        Args:
            work: what was done.
            files: local files, bytes, functions that write a file, or entries of files uploaded before, by name.
            counts: small numbers for people: models, tokens, steps.

        Returns:
            The published artifact: another writer's, when that was first.
        """
        entries = {
            name: content if isinstance(content, FileEntry) else self.upload(work, name, content)
            for name, content in files.items()
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            kind=work.kind,
            fingerprint=work.ref.fingerprint,
            version=work.version,
            config=dict(work.config),
            inputs={role: str(ref) for role, ref in work.inputs.items()},
            seed=work.seed,
            counts=dict(counts),
            libraries=_library_versions(),
            made=describe_making(),
            files=entries,
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        if not self.files.create(f"{work.ref}/{MANIFEST}", text):
            winner = {entry.path for entry in self.open(work.ref).manifest.files.values()}
            for entry in entries.values():
                if entry.path not in winner:
                    self.files.remove(f"{work.ref}/{entry.path}")
        self.partial(work).clear()
        return self.open(work.ref)


_manifests: dict[tuple[str, ArtifactRef], Manifest] = {}  # those that were opened here for another process


def _reopen(store: ArtifactStore, ref: ArtifactRef) -> Artifact:
    """Open an artifact that came from another process."""
    key = store.root, ref
    if key not in _manifests:
        while len(_manifests) >= _KEPT_MANIFESTS:
            _manifests.pop(next(iter(_manifests)))
        _manifests[key] = store.open(ref).manifest
    return Artifact(store, _manifests[key])


def _make_entry(name: str, size: int, sha256: str) -> FileEntry:
    stem, dot, suffix = name.partition(".")
    return FileEntry(path=f"{stem}-{sha256[:12]}{dot}{suffix}", bytes=size, sha256=sha256)


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
